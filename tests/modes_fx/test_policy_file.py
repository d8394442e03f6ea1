"""Where a policy file is found, and that writing it is all or nothing."""

from types import SimpleNamespace

import pytest
from httpx2 import Request, Response
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from modes_fx import policy_file
from modes_fx.errors import PolicyError
from modes_fx.policy_file import (
    CARD_FILE,
    CARD_MARKER,
    POLICY_FILE,
    NoPolicyError,
    locate_policy,
    upload_policy,
    write_card,
    write_policy,
)


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


def test_a_repository_without_policy_is_told_from_one_out_of_reach(monkeypatch):
    def download(*_, **__):
        raise RemoteEntryNotFoundError("404", response=Response(404, request=Request("GET", "/")))

    monkeypatch.setattr(policy_file, "hf_hub_download", download)
    with pytest.raises(NoPolicyError, match=f"of that name holds no {POLICY_FILE}"):
        locate_policy("org/name")


class Hub:
    """Stands in for HfApi: a repository's files, and what was asked."""

    def __init__(self, folder, **files):
        self.folder = folder
        self.calls = []
        for name, text in files.items():
            (folder / f"{name}.md").write_text(text)

    def __call__(self, token):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))
        return SimpleNamespace(repo_id=f"user/{repo_id}")

    def file_exists(self, repo_id, name):
        return (self.folder / name).exists()

    def hf_hub_download(self, repo_id, name):
        return str(self.folder / name)

    def create_commit(self, repo_id, operations, commit_message):
        contents = {o.path_in_repo: o.path_or_fileobj for o in operations}
        self.calls.append(("commit", repo_id, contents))


FILES = {"means": b"0", POLICY_FILE: b"{}"}


def uploaded(monkeypatch, hub):
    monkeypatch.setattr(policy_file, "HfApi", hub)
    upload_policy("name", FILES, "card of {}".format, private=True, token="secret")
    return hub.calls


def test_upload_makes_the_repository(monkeypatch, tmp_path):
    assert uploaded(monkeypatch, Hub(tmp_path)) == [
        ("token", "secret"),
        ("create", "name", True, True),
        ("commit", "user/name", {CARD_FILE: b"card of user/name", **FILES}),
    ]


@pytest.mark.parametrize(("there", "replaced"), [("# The model", False), (CARD_MARKER, True)])
def test_upload_replaces_only_a_card_of_ours(monkeypatch, tmp_path, there, replaced):
    (*_, (_, _, contents)) = uploaded(monkeypatch, Hub(tmp_path, README=there))
    assert (CARD_FILE in contents) == replaced


@pytest.mark.parametrize(("there", "left"), [("# The model", "# The model"), (CARD_MARKER, "new")])
def test_only_a_card_of_ours_is_replaced_in_a_folder(tmp_path, there, left):
    (tmp_path / CARD_FILE).write_text(there)
    write_card(tmp_path, "new")
    assert (tmp_path / CARD_FILE).read_text() == left
