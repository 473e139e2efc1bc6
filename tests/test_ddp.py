"""A run on two processes is that on one; tests/slow/test_distributed.py has more of both."""

from launch import PLAIN, makes_the_same_run, work


def test_two_processes_make_the_run_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, processes in ((one, 1), (two, 2)):
        work("ddp", processes, {str(folder): PLAIN})
    makes_the_same_run(one, two, 2)
