import pytest
from harness import Zygote, flags


@pytest.fixture(scope="session")
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def undisturbed(zygote, tmp_path_factory):
    """Output folders of runs that nothing disturbed, by main and further flags."""
    finished = {}

    def folder(main: str, *more: str):
        key = (main, *more)
        if key not in finished:
            output = tmp_path_factory.mktemp("undisturbed")
            assert zygote.run(main, flags(main, output, *more), output / "stdout") == 0, (
                output / "stdout"
            ).read_text()
            finished[key] = output
        return finished[key]

    return folder
