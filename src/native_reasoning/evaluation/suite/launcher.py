"""The process in which ``sandbox.py`` runs a program: started with an empty environment and
without site-packages, it shuts itself in, forks, and the child runs the program.

It imports nothing of the package. Standard input has the program and what is asked for, standard
output gets the token once the program has run to its end.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

_NEWNS, _NEWUTS, _NEWIPC = 0x20000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 0x4000, 0x40000, 2, 4
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY = 442, -100, 0x8000, 1
_SET_DUMPABLE, _SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 4, 1, 22, 38
_MEMORY, _FILE, _OPEN = 512 << 20, 16 << 20, 32


#: System calls that no problem needs, by machine: new processes and threads, other programs,
#: sockets, signals, other processes' memory, mounts and namespaces.
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_REFUSED = {
    # clone fork vfork execve kill ptrace socket socketpair mount umount2 tkill tgkill unshare
    # setns perf_event_open process_vm_readv process_vm_writev bpf execveat userfaultfd
    # rt_sigqueueinfo rt_tgsigqueueinfo
    "x86_64": (
        *(56, 57, 58, 59, 62, 101, 41, 53, 165, 166, 200, 234, 272),
        *(308, 298, 310, 311, 321, 322, 323, 129, 297),
    ),
    "aarch64": (
        *(220, 221, 129, 117, 198, 199, 40, 39, 130, 131, 97),
        *(268, 241, 270, 271, 280, 281, 282, 138, 240),
    ),
}
#: prlimit64, fcntl, prctl, by machine: refused by an argument, see ``by_argument``.
_BY_ARGUMENT = {"x86_64": (302, 72, 157), "aarch64": (261, 25, 167)}
_SETOWN, _SETSIG, _SETOWN_EX = 8, 10, 15  # of fcntl: whom a pipe signals, and how
#: pidfd_send_signal, io_uring_setup, move_mount, fsopen, pidfd_open, clone3, pidfd_getfd,
#: mount_setattr have the same numbers everywhere.
_REFUSED_EVERYWHERE = (424, 425, 429, 430, 434, 435, 438, 442)
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refused with EPERM


class Instruction(ctypes.Structure):
    """``struct sock_filter``."""

    _fields_ = [
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(Instruction))]


class Attributes(ctypes.Structure):
    """``struct mount_attr`` of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def checked(result: int) -> None:
    """Raises OSError where a system call failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def namespaces(libc: ctypes.CDLL) -> None:
    """Namespaces of its own for users, mounts, network, processes, messages and the host name."""
    user, group = os.getuid(), os.getgid()
    checked(libc.prctl(_SET_DUMPABLE, 1, 0, 0, 0))  # or /proc/self would be root's
    checked(libc.unshare(_NEWUSER | _NEWNS | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mounts(libc: ctypes.CDLL, folder: bytes) -> None:
    """Everything read-only, nothing in /proc, and a small file system in memory as ``folder``."""
    checked(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    attributes = Attributes(set=_RDONLY | _MS_NOSUID | _MS_NODEV)  # the same bits there
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    path = ctypes.c_char_p(b"/")
    checked(
        libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path, _AT_RECURSIVE, ctypes.byref(attributes), size)
    )
    flags = _MS_NOSUID | _MS_NODEV
    checked(libc.mount(b"tmpfs", folder, b"tmpfs", flags, b"size=16m,nr_inodes=1k"))
    checked(libc.mount(b"tmpfs", b"/proc", b"tmpfs", flags | _RDONLY, b"size=4k"))


def without_capabilities(libc: ctypes.CDLL) -> None:
    """Gives up what the first process of a user namespace may do there, such as mounting."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(libc.capset(header, (ctypes.c_uint32 * 6)()))


def by_argument(number: int, index: int, values: tuple[int, ...], found: int) -> list[Instruction]:
    """Of a call, ends in ``found`` (allow or refuse) where the argument (its lower half, all that
    the kernel reads of these) is one of ``values``, else in the other. Goes on for other calls."""
    count = len(values)
    return [
        Instruction(_EQUAL, 0, count + 3, number),
        Instruction(_LOAD, 0, 0, 16 + 8 * index),
        *(Instruction(_EQUAL, count - i, 0, value) for i, value in enumerate(values)),
        Instruction(_RETURN, 0, 0, _REFUSE if found == _ALLOW else _ALLOW),
        Instruction(_RETURN, 0, 0, found),
    ]


def filtered(libc: ctypes.CDLL) -> None:
    """Refuses the system calls above; does nothing on a machine whose numbers are not known."""
    machine = os.uname().machine
    if machine not in _AUDIT:
        return
    refused = (*_REFUSED[machine], *_REFUSED_EVERYWHERE)
    prlimit64, fcntl, prctl = _BY_ARGUMENT[machine]
    parts = [
        *by_argument(prlimit64, 0, (0,), _ALLOW),  # the limits of oneself
        *by_argument(fcntl, 1, (_SETOWN, _SETSIG, _SETOWN_EX), _REFUSE),
        *by_argument(prctl, 0, (_SET_PDEATHSIG,), _REFUSE),
    ]
    last = len(refused) + len(parts)
    made = [
        Instruction(_LOAD, 0, 0, 4),  # the machine that the call is made for
        Instruction(_EQUAL, 1, 0, _AUDIT[machine]),
        Instruction(_RETURN, 0, 0, _KILL),
        Instruction(_LOAD, 0, 0, 0),  # its number
        Instruction(_AT_LEAST, last + 1, 0, 0x40000000),  # the same calls under other numbers
        *(Instruction(_EQUAL, last - i, 0, number) for i, number in enumerate(refused)),
        *parts,
        Instruction(_RETURN, 0, 0, _ALLOW),
        Instruction(_RETURN, 0, 0, _REFUSE),
    ]
    program = Program(len(made), (Instruction * len(made))(*made))
    checked(libc.prctl(_SET_SECCOMP, 2, ctypes.byref(program), 0, 0))


def limits(seconds: int) -> None:
    """Bounds that the program cannot lift (of processes: not enforced for root)."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, _FILE),
        (resource.RLIMIT_NOFILE, _OPEN),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def child(
    asked: dict,  # pyright: ignore[reportMissingTypeArgument]  (typing is slow to import)
    out: int,
    libc: ctypes.CDLL,
) -> None:
    """Shuts itself in the rest of the way and runs the program."""
    code = compile(asked["program"], "<program>", "exec")
    limits(int(asked["timeout"]) + 1)
    if sys.platform == "linux":
        checked(libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
        if asked["isolation"] == "namespaces":
            folder = os.getcwdb()
            mounts(libc, folder)
            os.chdir(folder)  # what is mounted there, not what lies below
        checked(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        without_capabilities(libc)
        filtered(libc)
    exec(code, {"__name__": "__main__"})  # nosec B102
    os.write(out, asked["token"].encode())


def wait(pid: int, seconds: float) -> int:
    """The child's exit status; past the limit it is killed, whatever session it went to."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)  # with the first process of a namespace all others end
    os.waitpid(pid, 0)
    return 1


def main() -> int:
    """Returns the exit code."""
    asked = json.loads(sys.stdin.buffer.read())
    out, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    libc = ctypes.CDLL(None, use_errno=True)
    if asked["isolation"] == "namespaces":
        namespaces(libc)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(asked, out, libc)
            code = 0
        finally:
            os._exit(code)
    return wait(pid, asked["timeout"])


if __name__ == "__main__":
    sys.exit(main())
