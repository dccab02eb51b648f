"""One small fine-tuned network for all tests of prediction."""

import pytest
from small_trial import Trial, make_trial


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return make_trial(tmp_path_factory.mktemp("trial"))
