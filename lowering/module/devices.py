"""Devices of targets, as the IREE runtime finds them on this machine."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import iree.runtime as rt

from trinity.lowering.targets.targets import Target
from trinity.methods.errors import MachineError

logger = logging.getLogger(__name__)

# What the runtime's status codes are raised as: which one, is not part of its interface.  A missing
# Vulkan loader is a ValueError, a loader without a driver is a RuntimeError.
STATUS_ERRORS = (RuntimeError, ValueError, IndexError)


def has_device(driver: str) -> bool:
    """Whether the IREE runtime finds a device of this driver."""
    if driver not in rt.query_available_drivers():
        return False
    try:
        return bool(rt.get_driver(driver).query_available_devices())
    except STATUS_ERRORS as error:  # the driver's library is not installed, or broken
        logger.info("%s: no device: %s", driver, error)
        return False


def architecture_of(driver: str) -> str | None:
    """The architecture of a driver's first device, which is the one that runs modules; None if the
    driver does not tell.
    """
    try:
        first, *_ = (found := rt.get_driver(driver)).query_available_devices()
        info = found.dump_device_info(first["device_id"])
    except STATUS_ERRORS as error:
        logger.info("%s: the device does not say what it is: %s", driver, error)
        return None
    # As "gfx90a:sramecc+:xnack-": which features of it are on does not matter to our code objects.
    told = re.search(r"gpu-arch-name: *(\w+)", info)
    return told[1] if told else None


def lacking(target: Target) -> str | None:
    """What this machine lacks to run a target's modules, and what to do; None if nothing."""
    foreign = target.cpu is not None and target.cpu.missing is not None
    if target.driver is None or foreign or not has_device(target.driver):
        return target.missing
    if target.architecture and (here := architecture_of(target.driver)) != target.architecture:
        return (
            f"its modules are for {target.architecture}, and the GPU here is of "
            f"{here or 'an architecture that its driver does not tell'}. Choose the target of that "
            f"architecture, or vulkan, which every GPU with a driver for it runs."
        )
    return None


def available(target: Target) -> bool:
    """Whether this machine has a target's device."""
    return lacking(target) is None


def require(target: Target) -> str:
    """The driver of a target; MachineError if its modules cannot run here."""
    if target.cpu:
        target.cpu.require()
    missing = lacking(target)
    if target.driver is None or missing:
        msg = f"target {target.name}: modules compile but cannot run here: {missing}"
        raise MachineError(msg)
    return target.driver


def open_device(target: Target) -> rt.HalDevice:
    """The device of a target; MachineError if this machine has none, or it does not start."""
    driver = require(target)
    try:
        with batch_scheduling():  # threads that a device starts inherit it
            return rt.get_device(driver)
    except STATUS_ERRORS as error:
        reason = str(error).partition("\n")[0]
        msg = (
            f"target {target.name}: the {driver} driver lists a device, which does not start "
            f"({reason}). Is its driver older than the IREE runtime needs, or the device in use?"
        )
        raise MachineError(msg) from error


@contextmanager
def batch_scheduling() -> Iterator[None]:
    """While it lasts, this thread takes no other's processor when it is woken.

    A worker that ends a call or a copy wakes the caller before it is quite done, and the runtime
    lets the caller spin for the rest.  With a worker on every processor, the caller took that
    worker's, and both stood until the scheduler's next tick, 4 ms, as long as a whole step.
    """
    if not hasattr(os, "SCHED_BATCH"):  # Linux's
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    changes = policy == os.SCHED_OTHER
    with suppress(PermissionError):  # a container may forbid it; calls are then right, and slower
        if changes:
            os.sched_setscheduler(0, os.SCHED_BATCH, parameters)
    try:
        yield
    finally:
        with suppress(PermissionError):
            if changes:
                os.sched_setscheduler(0, policy, parameters)
