"""The profiles of Hypothesis; `HYPOTHESIS_PROFILE` selects one of them. What runs where."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Clocks on shared machines lie: no test fails because generating took long.
_CALM = [HealthCheck.too_slow]

settings.register_profile("default", deadline=None, max_examples=100, suppress_health_check=_CALM)
settings.register_profile(
    "nightly", deadline=None, max_examples=10_000, suppress_health_check=_CALM
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


# A shell lets what it starts in the background ignore Ctrl-C, and processes inherit that: servers
# that tests interrupt would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several processes, what a fixture makes for many tests is made in one of them only.

    What is slow begins first, so that at the end no process waits for it.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        if makers := sorted(_makers(item)):
            item.add_marker(pytest.mark.xdist_group(makers[-1][1]))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _makers(item: pytest.Item) -> Iterator[tuple[bool, str]]:
    """The modules of the fixtures that a test shares, and whether with the whole session."""
    assert isinstance(item, pytest.Function)
    known = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - scopes have no public door
    for fixture in (definitions[-1] for definitions in known.values()):
        module = fixture.func.__module__
        if fixture.scope != "function" and module.startswith("tests."):
            yield fixture.scope == "session", module
