"""A small tracer: sees, records, fails, shortens or never lets happen what a process writes.

`trace` forks, runs a function in the child and stops it at every system call that can change files:
those that open, write, cut, rename, link, remove, change a mode or ask for durability. A seccomp
filter in the child makes only these stop, so that all others run at full speed; threads and children
of the child are followed. No other program is needed, and no signal is injected: a kill is a plain
SIGKILL sent while the call waits at its entry, so the call does not happen (the kernel skips a call
whose process has been killed meanwhile).

Linux on x86-64 or aarch64; `unavailable()` says what is missing.
Sources: ptrace(2), seccomp(2), process of a filtered call in seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from calls import CHANGING, NAMES, OPENS, Call, Reader, Vector

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS = 0, 7, 24, 0x4200
_GETREGSET, _SETREGSET, _GET_SYSCALL_INFO = 0x4204, 0x4205, 0x420E
_PRSTATUS, _ARM_SYSTEM_CALL = 1, 0x404
# TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACESECCOMP, EXITKILL
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x80 | 0x100000
_EVENT_SECCOMP = 7
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000
# Registers of NT_PRSTATUS, by place: the system call's number and result, and its arguments.
_X86 = platform.machine() == "x86_64"
_AUDIT_ARCH = 0xC000003E if _X86 else 0xC00000B7
_NUMBER, _RESULT, _ARGUMENTS = (15, 10, (14, 13, 12, 7)) if _X86 else (-1, 0, (0, 1, 2, 3))
_REGISTERS = 27 if _X86 else 34


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process before the call happens."""


@dataclass(frozen=True, slots=True)
class Fail:
    """Let the call return an error, and do nothing."""

    code: int


@dataclass(frozen=True, slots=True)
class Shorten:
    """Let a write take only a part: a half, at least one byte."""


Action = Kill | Fail | Shorten | None


@dataclass(slots=True)
class Outcome:
    """How a traced process ended: `code` as subprocess has it, -9 for SIGKILL."""

    code: int = 0
    calls: list[Call] = field(default_factory=list)
    acted: list[tuple[Call, Action]] = field(default_factory=list)
    count: int = 0  # changing calls
    reported: bytes = b""
    timed_out: bool = False


class _Info(ctypes.Structure):
    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("words", ctypes.c_uint64 * 8),
    )


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    return libc


def thread_count() -> int:
    """Threads of this process: with more than one, a fork is not safe."""
    return len(os.listdir("/proc/self/task"))


def unavailable() -> str:
    """Why nothing can be traced here; empty when it can."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return (
            f"the tracer knows Linux on x86-64 and aarch64, not {sys.platform} {platform.machine()}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        try:
            outcome = trace(lambda: file.write_bytes(b"x") and None, Path(folder), record=True)
        except OSError as error:
            return f"ptrace is not permitted: {error}"
        if outcome.code or [call.name for call in outcome.calls][1:] != ["write"]:
            return f"ptrace or seccomp is not permitted (exit {outcome.code})"
    return ""


def trace(
    work: Callable[[], None],
    root: Path,
    act: Callable[[Call], Action] | None = None,
    *,
    record: bool = False,
    report: tuple[int, int] | None = None,
    errors: Path | None = None,
    limit: float = 60.0,
) -> Outcome:
    """Run `work` in a forked child and follow what it does below `root`.

    Args:
        work: what the child does; when it raises, the child prints it and ends with 70.
        root: the directory that is watched.
        act: asked at the entry of each call below `root` what is to happen; opens that only read
            are shown as well, with number 0.
        record: keep the calls, with data and results, and the writes to the report pipe.
        report: a pipe (reading end, writing end) for acknowledgements; the writing end is closed.
        errors: a file that takes the child's stderr.
        limit: seconds until the child is killed.

    Raises:
        OSError: ptrace is not permitted.
        RuntimeError: this process has threads.
    """
    if thread_count() > 1:
        raise RuntimeError("a process with threads is not safe to fork")
    child = os.fork()
    if child == 0:
        _be_traced(work, report, errors)
    return _Follower(child, root, act, record, report).follow(limit)


def _be_traced(
    work: Callable[[], None], report: tuple[int, int] | None, errors: Path | None
) -> None:
    code = 70
    try:
        if report is not None:
            os.close(report[0])
        if errors is not None:
            descriptor = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            os.dup2(descriptor, 2)
        if _libc().ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(71)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        work()
        code = 0
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _install_filter() -> None:
    """Stop for the tracer at the calls of the table, and at no other."""
    numbers = sorted(NAMES)
    program = [(0x20, 0, 0, 4), (0x15, 0, len(numbers) + 1, _AUDIT_ARCH), (0x20, 0, 0, 0)]
    program += [(0x15, len(numbers) - n, 0, number) for n, number in enumerate(numbers)]
    program += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x7FF00000)]
    code = b"".join(struct.pack("<HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = _libc()
    word = ctypes.c_ulong
    if libc.prctl(38, word(1), word(0), word(0), word(0)) or libc.prctl(
        22, word(2), ctypes.c_char_p(header), word(0), word(0)
    ):
        raise OSError(ctypes.get_errno(), "seccomp is not permitted")


class _Follower:
    """The tracer's side of one traced process."""

    def __init__(
        self,
        child: int,
        root: Path,
        act: Callable[[Call], Action] | None,
        record: bool,
        report: tuple[int, int] | None,
    ) -> None:
        self.child = child
        self.act = act
        self.record = record
        self.report = report
        pipe = os.readlink(f"/proc/self/fd/{report[1]}") if report else None
        self.reader = Reader(os.path.realpath(root), pipe, data=record)
        if report:
            os.close(report[1])
            os.set_blocking(report[0], False)
        self.libc = _libc()
        self.outcome = Outcome()
        self.known = {child}
        self.inside: dict[int, tuple[Call, Action]] = {}  # calls between entry and exit
        self.info = _Info()

    def follow(self, limit: float) -> Outcome:
        _, status = os.waitpid(self.child, _WALL)
        if not os.WIFSTOPPED(status):
            raise OSError(errno.EPERM, "ptrace is not permitted")
        self._ptrace(_SETOPTIONS, self.child, 0, _OPTIONS)
        self._ptrace(_CONT, self.child, 0, 0)

        def too_late(*_: object) -> None:
            self.outcome.timed_out = True
            os.kill(self.child, signal.SIGKILL)

        before = signal.signal(signal.SIGALRM, too_late)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            while self._step():
                pass
        except BaseException:
            os.kill(self.child, signal.SIGKILL)
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        self._read_reports()
        if self.report:
            os.close(self.report[0])
        return self.outcome

    def _step(self) -> bool:
        try:
            task, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return False
        if not os.WIFSTOPPED(status):
            self.known.discard(task)
            self.inside.pop(task, None)
            if task == self.child:
                self.outcome.code = os.waitstatus_to_exitcode(status)
                for other in self.known:  # children of the child; its threads are gone
                    os.kill(other, signal.SIGKILL)
            return True
        stop, event = os.WSTOPSIG(status), status >> 16
        if event == _EVENT_SECCOMP:
            self._resume(task, self._enter(task))
        elif stop == _SYSCALL_STOP:
            self._leave(task)
            self._resume(task, _CONT)
        elif event or task not in self.known:  # a new thread begins with a SIGSTOP of ptrace's
            if not event:
                self.known.add(task)
            self._resume(task, _CONT)
        else:
            self._resume(task, _CONT, stop)
        return True

    # -- a call --------------------------------------------------------------------------------

    def _enter(self, task: int) -> int:
        """Look at a call that is about to happen; how the task goes on."""
        if self._ptrace(_GET_SYSCALL_INFO, task, ctypes.sizeof(self.info), self.info) < 0:
            return _CONT
        number, *words = self.info.words
        try:
            call = self.reader.read(task, number, words)
        except OSError:
            return _CONT  # the process was killed meanwhile, or the descriptor is bad
        if call is None:
            return _CONT
        if call.is_report:
            if self.record:
                self.outcome.calls.append(call)
            return _CONT
        action = self._decide(call)
        if isinstance(action, Kill):
            os.kill(self.child, signal.SIGKILL)
            return _CONT
        if isinstance(action, Fail):
            self._set_number(task, -1)
        elif isinstance(action, Shorten):
            self._set_argument(task, 2, max(1, words[2] // 2))
        elif not (self.record and call.number):
            return _CONT
        self.inside[task] = (call, action)
        return _SYSCALL

    def _decide(self, call: Call) -> Action:
        """Number a call, and ask what is to happen."""
        if call.name not in OPENS or call.flags & CHANGING:
            self.outcome.count += 1
            call.number = self.outcome.count
        action = self.act(call) if self.act else None
        if action is not None:
            self.outcome.acted.append((call, action))
        return action

    def _leave(self, task: int) -> None:
        found = self.inside.pop(task, None)
        if found is None:
            return
        call, action = found
        if isinstance(action, Fail):
            self._set_result(task, -action.code)
            call.result = -action.code
        elif self._ptrace(_GET_SYSCALL_INFO, task, ctypes.sizeof(self.info), self.info) >= 0:
            result = int(self.info.words[0])
            call.result = result - (1 << 64) if result >> 63 else result
        if self.record:
            self.outcome.calls.append(call)

    # -- ptrace --------------------------------------------------------------------------------

    def _ptrace(self, request: int, task: int, address: int, data: object) -> int:
        pointer = ctypes.addressof(data) if isinstance(data, ctypes.Structure) else data
        return int(self.libc.ptrace(request, task, address, pointer))

    def _resume(self, task: int, how: int, number: int = 0) -> None:
        self._ptrace(how, task, 0, number)  # ESRCH: it was killed, which waitpid will say

    def _registers(
        self, task: int, change: Callable[[ctypes.Array[ctypes.c_uint64]], None]
    ) -> None:
        registers = (ctypes.c_uint64 * _REGISTERS)()
        vector = Vector(ctypes.addressof(registers), ctypes.sizeof(registers))
        if self._ptrace(_GETREGSET, task, _PRSTATUS, vector) >= 0:
            change(registers)
            self._ptrace(_SETREGSET, task, _PRSTATUS, vector)

    def _set_number(self, task: int, number: int) -> None:
        if _X86:
            self._registers(task, lambda r: r.__setitem__(_NUMBER, number & ((1 << 64) - 1)))
            return
        value = ctypes.c_int32(number)
        self._ptrace(_SETREGSET, task, _ARM_SYSTEM_CALL, Vector(ctypes.addressof(value), 4))

    def _set_result(self, task: int, result: int) -> None:
        self._registers(task, lambda r: r.__setitem__(_RESULT, result & ((1 << 64) - 1)))

    def _set_argument(self, task: int, place: int, value: int) -> None:
        self._registers(task, lambda r: r.__setitem__(_ARGUMENTS[place], value))

    def _read_reports(self) -> None:
        if self.report is None:
            return
        while True:
            try:
                chunk = os.read(self.report[0], 1 << 16)
            except BlockingIOError:
                return
            if not chunk:
                return
            self.outcome.reported += chunk
