"""An exchange between ranks that fails: which error the run ends with."""

import traceback
from types import SimpleNamespace

import pytest

from native_reasoning.config.errors import DataError, RunError
from native_reasoning.model import ranks

GONE = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"


def exchange(*args) -> None:
    raise RuntimeError(GONE)


def raised(*errors: Exception) -> RuntimeError:
    """The last of the errors, each raised while the one before it was on its way."""
    try:
        if errors[1:]:
            try:
                raise raised(*errors[:-1])
            finally:
                raise errors[-1]
        raise errors[-1]
    except RuntimeError as error:
        return error


@pytest.fixture
def two_ranks(monkeypatch):
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(ranks, "PartialState", lambda: state)
    monkeypatch.setattr(ranks, "broadcast_object_list", exchange)


def test_only_an_exchange_that_failed_means_a_lost_rank(two_ranks):
    lost = ranks.lost_rank(raised(RuntimeError(GONE)))
    assert isinstance(lost, RunError)
    assert "Connection closed by peer" in lost.why
    lost = ranks.lost_rank(raised(RuntimeError(GONE), RuntimeError(GONE)))
    assert isinstance(lost, RunError)
    for text in ("CUDA out of memory", "DataLoader worker timed out", "gloo has no such operation"):
        assert ranks.lost_rank(raised(RuntimeError(text))) is None


def test_what_a_rank_failed_with_by_itself_comes_before_an_exchange_that_failed(two_ranks):
    own = RunError("its own", why="", fix="")
    assert ranks.lost_rank(raised(own, RuntimeError(GONE))) is own
    assert ranks.lost_rank(raised(own, RuntimeError(GONE), RuntimeError(GONE))) is own
    error = raised(RuntimeError("a mistake of its own"), RuntimeError(GONE))
    assert ranks.lost_rank(error) is None
    assert "a mistake of its own" in "".join(traceback.format_exception(error))


def test_the_first_rank_says_why_it_failed_where_nobody_is_left_to_hear_it(two_ranks):
    def make():
        raise DataError("its own", why="", fix="")

    with pytest.raises(DataError, match="its own"):
        ranks.from_first_rank(make)
    with pytest.raises(RuntimeError, match="closed by peer"):
        ranks.from_first_rank(lambda: 1)
