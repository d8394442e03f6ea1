"""Where a policy file is found, and that writing it is all or nothing."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from modes_fx import policy_file
from modes_fx.errors import PolicyError
from modes_fx.policy_file import POLICY_FILE, locate_policy, upload_policy_text, write_policy_text


def test_a_folder_holds_its_policy(tmp_path):
    path = write_policy_text(tmp_path / "new" / "folder", "{}")
    assert locate_policy(path.parent) == path
    assert locate_policy(str(path.parent)) == path


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_policy_text(tmp_path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_policy_text(tmp_path, "new \ud800")
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

        def upload_file(self, path_or_fileobj, path_in_repo, repo_id, commit_message):
            calls.append(("upload", path_or_fileobj, path_in_repo, repo_id))

    monkeypatch.setattr(policy_file, "HfApi", Hub)
    upload_policy_text("name", "{}", private=True, token="secret")
    assert calls == [
        ("token", "secret"),
        ("create", "name", True, True),
        ("upload", b"{}", POLICY_FILE, "user/name"),
    ]
