"""The pytest plugin: `celosia_device`, an open device for people's own suites.

pytest loads it in every run where celosia is installed, so it imports nothing before the fixture is used.
"""

import pytest


def pytest_addoption(parser):
    group = parser.getgroup("celosia")
    group.addoption("--celosia-device", metavar="DEVICE", default="rtl", help="what the fixture celosia_device opens: rtl (default), cycle or golden")
    group.addoption("--celosia-config", metavar="CONFIG", default="tiny", help="its configuration, a name or a TOML file; default tiny")


@pytest.fixture(scope="session")
def celosia_device(pytestconfig):
    """A :class:`celosia.host.device.Device`, opened once a session by `--celosia-device` and `--celosia-config`.

    Raises what :func:`celosia.open_device` raises.
    """
    from .device import open_device

    with open_device(pytestconfig.getoption("celosia_device"), pytestconfig.getoption("celosia_config")) as device:
        yield device
