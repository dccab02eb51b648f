"""An exported encoder on the Hugging Face Hub: its weights, the JSON card, the Markdown card.

A repository that is made here is private unless said otherwise: weights of medical volumes are
their owner's to publish. The token is that of the Hub's own tools: HF_TOKEN, or what
`hf auth login` kept; HF_ENDPOINT names another server.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mim3d.dataio.errors import first_line
from mim3d.dataio.extras import extra
from mim3d.engine.errors import ConfigError
from mim3d.engine.runs.export import Exported
from mim3d.engine.runs.files import read_json
from mim3d.engine.runs.model_card import model_card

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ENDPOINT = "https://huggingface.co"
README = "README.md"
MARK = "<!-- written by mim3d:"
"""Begins the last line of a card, which holds the hash of the others: an edited one stays."""


@dataclass(frozen=True)
class Pushed:
    """Where the files went, and who can see them."""

    url: str
    is_private: bool
    readme_kept: bool
    """A README was there, and stays; the card stands beside the weights."""


class Hub:
    """A repository of the Hub, to which a token gives access; ConfigError where one lacks."""

    def __init__(self, repository: str, is_public: bool) -> None:
        if not REPOSITORY.fullmatch(repository):
            raise ConfigError(
                f"push {repository!r} is no repository: write OWNER/NAME, such as --push "
                f"my-lab/{Path(repository).name.strip('-.') or 'encoder'}"
            )
        with extra():
            from huggingface_hub import HfApi, get_token
        self.repository, self.is_public = repository, is_public
        self.endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
        token = get_token()
        if not token:
            raise ConfigError(
                f"push to {repository}: no token for {self.endpoint}; set HF_TOKEN, or log in with "
                "`hf auth login`"
            )
        self.api = HfApi(endpoint=self.endpoint, token=token)

    def push(self, exported: Exported) -> Pushed:
        """Make the repository where there is none, and upload the files in one commit."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return self._push(exported)
        except HfHubHTTPError as error:
            raise self.refused(error, exported) from error
        except ConfigError:
            raise
        except ValueError as error:  # of metadata or answers that are none
            said = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"push to {self.repository}: {said}; {exported.weights} is written"
            ) from error
        except failures(HfHubHTTPError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            if isinstance(cause, HfHubHTTPError):
                raise self.refused(cause, exported) from error
            offline = os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}
            way = "unset HF_HUB_OFFLINE" if offline else "look at the network and HF_ENDPOINT"
            raise ConfigError(
                f"push to {self.repository}: {self.endpoint} cannot be reached "
                f"({first_line(error)[:160]}): {way}, then run the same command again; "
                f"{exported.weights} is written"
            ) from error

    def _push(self, exported: Exported) -> Pushed:
        self.api.create_repo(self.repository, private=not self.is_public, exist_ok=True)
        found = self.api.model_info(self.repository)
        if not found.private and not self.is_public:
            raise ConfigError(
                f"push to {self.repository}: it is there and public; add --push-public to upload "
                f"to it, or name another. {exported.weights} is written"
            )
        names = {sibling.rfilename for sibling in found.siblings or ()}
        readme_kept = README in names and not self.is_own(README)
        self.api.create_commit(
            self.repository,
            self.operations(exported, readme_kept),
            commit_message=f"{exported.weights.name}, exported by mim3d",
        )
        url = f"{self.endpoint}/{self.repository}"
        return Pushed(url, bool(found.private), readme_kept)

    def is_own(self, name: str) -> bool:
        """Whether a card there was written by mim3d, and by nobody since."""
        with TemporaryDirectory() as folder:
            local = self.api.hf_hub_download(self.repository, name, cache_dir=folder)
            text = Path(local).read_text(encoding="utf-8")
        return text == signed(text.rpartition(MARK)[0].rstrip())

    def operations(self, exported: Exported, readme_kept: bool) -> list[Any]:
        """The files of the commit."""
        from huggingface_hub import CommitOperationAdd

        text = signed(model_card(read_json(exported.card), exported.weights.name, self.repository))
        card = exported.readme.name if readme_kept else README
        files = {
            exported.weights.name: exported.weights,
            exported.card.name: exported.card,
            card: text.encode(),
        }
        return [CommitOperationAdd(name, file) for name, file in files.items()]

    def refused(self, error: Any, exported: Exported) -> ConfigError:
        """What the Hub's answer means, in one line."""
        status = error.response.status_code
        said = first_line(ValueError(error.server_message or str(error)))[:160]
        if status == 401:
            way = (
                f"it does not take the token: make one that may write at {self.endpoint}/settings/"
                "tokens and set HF_TOKEN"
            )
        elif status in (403, 404):
            way = (
                f"the token's owner may not write there ({said}): name a repository of your own by "
                "--push, or set HF_TOKEN to a token that may"
            )
        else:
            way = f"{self.endpoint} answered {status} ({said}): run the same command again later"
        return ConfigError(f"push to {self.repository}: {way}. {exported.weights} is written")


def failures(answered: type[Exception]) -> tuple[type[Exception], ...]:
    """What an upload fails with where there is no answer: errors of the system and of the HTTP
    library, which is another one in some versions, and what is raised around them."""
    return (*(each for each in answered.__bases__ if issubclass(each, Exception)), RuntimeError)


def signed(text: str) -> str:
    """A card with the line that tells whether somebody changed it."""
    text = text.rstrip()
    return f"{text}\n\n{MARK} {hashlib.sha256(text.encode()).hexdigest()[:16]} -->\n"
