"""Where a policy file is found, and that writing it is all or nothing."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from modes_fx import policy_file
from modes_fx.errors import PolicyError
from modes_fx.policy_file import POLICY_FILE, locate_policy, upload_policy, write_policy


def test_a_folder_holds_its_policy(tmp_path):
    path = write_policy(tmp_path / "new" / "folder", {POLICY_FILE: b"{}"})
    assert locate_policy(path.parent) == path
    assert locate_policy(str(path.parent)) == path


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_policy(tmp_path, {POLICY_FILE: b"old"})
    with pytest.raises(TypeError):
        write_policy(tmp_path, {POLICY_FILE: "not bytes"})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_without_policy_is_refused(tmp_path):
    with pytest.raises(PolicyError, match=f"holds no {POLICY_FILE}"):
        locate_policy(tmp_path)


@pytest.mark.parametrize("source", ["no-such-folder", "./a/b", "/a/b/c", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(source, monkeypatch):
    monkeypatch.setattr(policy_file, "hf_hub_download", lambda *_, **__: pytest.fail("asked hub"))
    with pytest.raises(PolicyError, match=f"no folder '{source.removeprefix('./')}'"):
        locate_policy(source)


def test_a_hub_id_is_downloaded(monkeypatch, tmp_path):
    def download(repo_id, filename, revision):
        return str(tmp_path / repo_id / revision / filename)

    monkeypatch.setattr(policy_file, "hf_hub_download", download)
    assert locate_policy("org/name", "v1") == tmp_path / "org/name/v1" / POLICY_FILE


def test_an_unreachable_hub_is_said_so(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("cannot reach the hub\nmore")

    monkeypatch.setattr(policy_file, "hf_hub_download", download)
    with pytest.raises(PolicyError, match=r"no folder 'org/name'.*cannot reach the hub$"):
        locate_policy("org/name")


def test_upload_makes_the_repository(monkeypatch):
    calls = []

    class Hub:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))
            return SimpleNamespace(repo_id=f"user/{repo_id}")

        def create_commit(self, repo_id, operations, commit_message):
            contents = {o.path_in_repo: o.path_or_fileobj for o in operations}
            calls.append(("commit", repo_id, contents))

    monkeypatch.setattr(policy_file, "HfApi", Hub)
    files = {"means": b"0", POLICY_FILE: b"{}"}
    upload_policy("name", files, private=True, token="secret")
    assert calls == [
        ("token", "secret"),
        ("create", "name", True, True),
        ("commit", "user/name", files),
    ]
