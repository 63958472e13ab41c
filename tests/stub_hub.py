"""A folder in the place of the Hugging Face Hub; its functions can be called as the client's own, and not otherwise."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
from huggingface_hub import HfApi, RepoUrl, errors


def failed(kind, status, message="no"):
    """An error of the client's for an answer with this status."""
    return kind(message, response=SimpleNamespace(status_code=status, headers={}, request=None))


class StubHub:
    """Repositories are folders ``REPO`` or ``REPO@REVISION``.

    Args:
        folder: of the repositories.
        patch: pytest's.
    """

    def __init__(self, folder, patch):
        self.folder, self.asked, self.down = Path(folder), [], None
        self.visibility, self.token = {}, "hf_token"
        patch.setattr(huggingface_hub, "hf_hub_download", self.standing_for(huggingface_hub.hf_hub_download))
        patch.setattr(huggingface_hub, "get_token", lambda: self.token)
        for name in ("list_repo_files", "repo_info", "create_repo", "upload_folder"):
            patch.setattr(HfApi, name, self.standing_for(getattr(HfApi, name)))

    def standing_for(self, function):
        """Of the same signature as the client's function, answered here."""
        return create_autospec(function, side_effect=getattr(self, function.__name__))

    def add(self, name, content, repo="org/name"):
        """A file in a repository."""
        file = self.folder / repo / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def _repository(self, repo_id, revision=None):
        if self.down:
            raise self.down
        huggingface_hub.utils.validate_repo_id(repo_id)
        if not (self.folder / repo_id).is_dir():
            raise failed(errors.RepositoryNotFoundError, 404)
        place = self.folder / (f"{repo_id}@{revision}" if revision else repo_id)
        if not place.is_dir():
            raise failed(errors.RevisionNotFoundError, 404)
        return place

    def hf_hub_download(self, repo_id, filename, revision=None):
        self.asked.append((repo_id, filename, revision))
        file = self._repository(repo_id, revision) / filename
        if not file.is_file():
            raise failed(errors.RemoteEntryNotFoundError, 404)
        return str(file)

    def list_repo_files(self, api, repo_id, revision=None):
        place = self._repository(repo_id, revision)
        return sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())

    def repo_info(self, api, repo_id):
        return SimpleNamespace(private=self.visibility[repo_id])

    def create_repo(self, api, repo_id, private=None, exist_ok=False):
        if self.down:
            raise self.down
        repo_id = repo_id if "/" in repo_id else f"me/{repo_id}"
        if repo_id.startswith("others/"):
            raise failed(errors.HfHubHTTPError, 403, "403 Forbidden: you don't have the rights")
        assert exist_ok or repo_id not in self.visibility
        self.visibility.setdefault(repo_id, bool(private))
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, api, *, repo_id, folder_path, commit_message):
        if self.down:
            raise self.down
        assert repo_id in self.visibility
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
