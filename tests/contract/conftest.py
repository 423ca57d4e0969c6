"""Each test is run over both interfaces, unless it is marked `one_interface`; the environment of
whoever runs them decides nothing."""

import os

import pytest

from tests.contract import client


@pytest.fixture(autouse=True)
def no_options_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AEGIS_")]:
        monkeypatch.delenv(name)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("one_interface") is None:
        over_rsgi = pytest.param("rsgi", marks=pytest.mark.rsgi)
        metafunc.parametrize("interface", ["asgi", over_rsgi], indirect=True)


@pytest.fixture(autouse=True)
def interface(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "interface", getattr(request, "param", "none"))
