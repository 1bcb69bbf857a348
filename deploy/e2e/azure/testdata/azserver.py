# Runs commands of az in processes forked from one that has imported az's code: the imports are most of what a command costs. In
# each process, az's own main runs as python -m azure.cli would run it. Needs az's Python.
#
# azserver.py SOCKET takes two kinds of requests, each on a connection of its own:
#
#   {"serve": SOCKET, "env": {...}}                     listens at SOCKET, and runs there the commands of one AZURE_CONFIG_DIR,
#                                                       which az reads when it is imported
#   {"args": [...], "env": {...}, "folder": FOLDER}     one command, with the descriptors of stdin, stdout and stderr
#
# A request is its length in four bytes, and JSON. The response is the exit code. If the client closes the connection before, the
# process that serves it is killed. The servers end when their stdin does.
import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import sys
import threading

# What the tests' commands import: packages that do not read AZURE_CONFIG_DIR, and those of az. A name that a version of az does not
# have, or one that is missing here, only costs time.
LIBRARIES = """
    msal msrest requests requests_oauthlib azure.core azure.mgmt.authorization azure.mgmt.containerregistry
    azure.mgmt.containerregistrytasks azure.mgmt.containerservice azure.mgmt.monitor azure.mgmt.msi azure.mgmt.resource
"""
COMMANDS = """
    azure.cli.core azure.cli.telemetry azure.cli.command_modules.acr azure.cli.command_modules.acs
    azure.cli.command_modules.identity azure.cli.command_modules.monitor.aaz.latest.monitor.account
    azure.cli.command_modules.monitor.aaz.latest.monitor.log_analytics azure.cli.command_modules.monitor.commands
    azure.cli.command_modules.monitor.custom azure.cli.command_modules.monitor.grammar
    azure.cli.command_modules.monitor.operations azure.cli.command_modules.profile azure.cli.command_modules.resource
    azure.cli.command_modules.role azure.cli.command_modules.serviceconnector azure.cli.command_modules.util
"""


def load(name):
    """Imports a package with all that is in it."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return
    for below in pkgutil.iter_modules(getattr(module, "__path__", []), name + "."):
        if not below.name.endswith((".__main__", ".tests")):
            load(below.name)


def serve(path, run):
    """Forks for each connection, and returns run(request) in the child only."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    os.rename(path + ".new", path)
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.freeze()  # a collection in a child would copy the memory
    children = {}  # process ids by connection
    while True:
        ready, _, _ = select.select([0, listener, wake, *children], [], [])
        if 0 in ready:  # the other end of stdin is closed
            os._exit(0)
        for source in ready:
            if source is listener:
                connection, _ = listener.accept()
                try:
                    request, descriptors = receive(connection)
                except ConnectionError:  # the client was killed
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for number, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, number)
                for descriptor in descriptors:
                    os.close(descriptor)
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.environ.clear()
                    os.environ.update(request["env"])
                    return run(request)
                children[connection] = pid
            elif source == wake:
                os.read(wake, 512)
            elif is_closed(source):
                os.kill(children[source], signal.SIGKILL)
        for connection, pid in list(children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del children[connection]
                respond(connection, os.waitstatus_to_exitcode(status))


def receive(connection):
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    if len(header) < 4:
        raise ConnectionError
    size, = struct.unpack(">I", header)
    body = b""
    while len(body) < size:
        part = connection.recv(size - len(body))
        if not part:
            raise ConnectionError
        body += part
    return json.loads(body), descriptors


def is_closed(connection):
    """Whether a connection that can be read is at its end: after the request, clients send nothing."""
    try:
        return not connection.recv(1)
    except ConnectionError:
        return True


def respond(connection, code):
    with connection:
        try:
            connection.sendall(str(code).encode())
        except ConnectionError:  # the client is gone
            pass


def start(request):
    for name in COMMANDS.split():
        load(name)
    return serve(request["serve"], command)


def command(request):
    """Runs az, and ends the process as Python does, except that it does not free the modules: that would copy their memory."""
    os.chdir(request["folder"])
    os.environ.setdefault("AZ_INSTALLER", "PIP")  # as az's start script does
    sys.argv = ["az", *request["args"]]
    code = 0
    try:
        runpy.run_module("azure.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for library in LIBRARIES.split():
    load(library)
serve(sys.argv[1], start)
