"""The guests of a cluster: booting them once, restoring them afterwards, and
talking to them through the guest agent."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
import time

import ns
from cluster import Error, VAGRANT, log, run

# Of a file sent through the agent. A request must fit into the socket buffer
# between libvirt and QEMU (208 KiB by default): when a write is cut short, libvirt
# (9.0 at least) begins again at the start, and the agent gets garbage or stalls.
CHUNK = 96 << 10


def libvirt_modules():
    try:
        import libvirt
        import libvirt_qemu
    except ImportError:
        raise Error("python3-libvirt is not installed; run vagrant/provision/packages.sh --cluster")
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt, libvirt_qemu


class Guest:
    """A guest, reached through the libvirtd of the host it is on."""

    def __init__(self, cluster, name, host=None):
        self.libvirt, self.qemu = libvirt_modules()
        self.cluster, self.name = cluster, name
        self.host = host or cluster.guest(name)["host"]
        self.conn = self.connect(self.host)

    def connect(self, host):
        sock = self.cluster.path(host, "/run/libvirt/libvirt-sock")
        try:
            return self.libvirt.open(f"qemu+unix:///system?socket={sock}")
        except self.libvirt.libvirtError as err:
            raise Error(f"{host}: {err}")

    def domain(self):
        try:
            return self.conn.lookupByName(self.name)
        except self.libvirt.libvirtError as err:
            problem = err
        # A whole guest may have been migrated by libvirt.
        for host in self.cluster.hosts():
            try:
                conn = self.connect(host)
                domain = conn.lookupByName(self.name)
            except (Error, self.libvirt.libvirtError):
                continue
            self.host, self.conn = host, conn
            return domain
        raise Error(f"{self.name}: {problem}")

    def agent(self, command, timeout=10, **arguments):
        """One command to the guest agent, which libvirt takes one at a time."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            return json.loads(self.qemu.qemuAgentCommand(
                self.domain(), json.dumps(request), timeout, 0))["return"]
        except self.libvirt.libvirtError as err:
            raise Error(f"{self.name}: guest agent: {err}")

    def wait_agent(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self.agent("guest-ping", timeout=5)
            except Error:
                if time.monotonic() > deadline or not self.domain().isActive():
                    raise Error(f"{self.name}: no guest agent within {timeout} s")
                time.sleep(0.5)

    def execute(self, command, timeout=60, data=None):
        """(exit code, stdout, stderr); 124 when it was killed for its time."""
        deadline = time.monotonic() + timeout
        arguments = {"path": command[0], "arg": command[1:], "capture-output": True}
        if data is not None:
            arguments["input-data"] = base64.b64encode(data).decode()
        pid = self.agent("guest-exec", **arguments)["pid"]
        pause = 0.02
        while True:
            status = self.agent("guest-exec-status", pid=pid)
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                self.agent("guest-exec", path="kill", arg=["-9", str(pid)])
                return 124, b"", f"no end within {timeout} s\n".encode()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)
        code = status.get("exitcode", 128 + status.get("signal", 0))
        return (code, base64.b64decode(status.get("out-data", "")),
                base64.b64decode(status.get("err-data", "")))

    def check(self, command, timeout=60):
        code, out, err = self.execute(command, timeout)
        if code:
            raise Error(f"{self.name}: {' '.join(command)}: exit {code}: {(out + err).decode(errors='replace')}")
        return out.decode(errors="replace")

    def push(self, source, target, mode):
        """Copies a file into the guest; it appears whole or not at all."""
        new = target + ".new"
        handle = self.agent("guest-file-open", path=new, mode="w")
        try:
            with open(source, "rb") as f:
                while True:
                    chunk = f.read(CHUNK)
                    if not chunk:
                        break
                    while chunk:
                        count = self.agent("guest-file-write", handle=handle, timeout=60, **{
                            "buf-b64": base64.b64encode(chunk).decode()})["count"]
                        chunk = chunk[count:]
        finally:
            self.agent("guest-file-close", handle=handle)
        self.check(["/bin/sh", "-c", 'chmod "$1" "$2" && mv -f "$2" "$3"', "sh", mode, new, target])


def domain_type(cluster, image):
    """kvm where a guest really boots with it, else qemu (TCG). That /dev/kvm
    exists and makes machines proves nothing, so this boots a kernel."""
    forced = os.environ.get("DROVER_DOMAIN_TYPE")
    if forced:
        return forced
    if not os.path.exists("/dev/kvm"):
        return "qemu"
    boot_id = open("/proc/sys/kernel/random/boot_id").read().strip()
    stamp = f"{cluster.cache}/kvm-probe"
    try:
        was, answer = open(stamp).read().split()
        if was == boot_id:
            return answer
    except (FileNotFoundError, ValueError):
        pass
    answer = "kvm" if boots_with_kvm(image) else "qemu"
    with open(f"{stamp}.{os.getpid()}", "w") as f:
        f.write(f"{boot_id} {answer}\n")
    os.rename(f"{stamp}.{os.getpid()}", stamp)
    return answer


def boots_with_kvm(image, timeout=10):
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "Nehalem", "-m", "256",
         "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
         "-serial", "stdio", "-kernel", f"{image}/vmlinuz", "-initrd", f"{image}/initrd.img",
         "-append", "console=ttyS0 panic=-1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        preexec_fn=ns.die_with_parent)
    timer = threading.Timer(timeout, qemu.kill)
    timer.start()
    try:
        return any(b"Run /init as init process" in line for line in qemu.stdout)
    finally:
        timer.cancel()
        qemu.kill()
        qemu.wait()


def build_image(cluster):
    """The image's directory as this machine sees it."""
    out = subprocess.run(
        # In namespaces of its own: whatever ends it, nothing stays mounted or running.
        ["unshare", "--mount", "--propagation", "private", "--pid", "--fork",
         "--kill-child=KILL", "--mount-proc", f"{VAGRANT}/provision/guest-image.sh"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DROVER_CACHE": cluster.cache}, preexec_fn=ns.die_with_parent)
    if out.returncode:
        raise Error(f"building the guest image failed:\n{out.stderr[-4000:]}")
    return out.stdout.strip().splitlines()[-1]


def guest_env(cluster, name, guest):
    image = cluster.state["image"].replace(cluster.cache, "/var/cache/drover", 1)
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root",
        "GUEST_NAME": name, "GUEST_IP": guest["address"], "GUEST_IMAGE": image,
        "GUEST_TYPE": cluster.state["type"],
        "GUEST_MEMORY": os.environ.get("DROVER_GUEST_MEMORY", "768"),
    }


def state_key(cluster, name, guest):
    script = f"{VAGRANT}/provision/guest.sh"
    xml = run([script, "xml"], env=guest_env(cluster, name, guest))
    versions = run(["qemu-system-x86_64", "--version"]) + run(["libvirtd", "--version"])
    return hashlib.sha256((xml + versions).encode()).hexdigest()[:16]


def saved_with(image, ram):
    """Whether a guest was saved since its image was built: an image that was built anew, by the
    same recipe, has other blocks than the saved memory knows."""
    try:
        return os.path.getmtime(ram) > os.path.getmtime(image)
    except FileNotFoundError:
        return False


def start_guest(cluster, name, fresh=False):
    """Restores the guest from the cache, or boots it and fills the cache."""
    info = cluster.guest(name)
    host, env = info["host"], guest_env(cluster, name, info)
    directory = f"states/{name}-{state_key(cluster, name, info)}"
    guest = Guest(cluster, name, host)
    saved = f"{cluster.cache}/{directory}"
    disk = f"{cluster.var_dir}/{host}/images/{name}.qcow2"
    script = "/vagrant/provision/guest.sh"
    if not fresh and saved_with(f"{cluster.state['image']}/guest.qcow2", f"{saved}/ram.save"):
        try:
            restore(cluster, guest, host, env, directory, disk)
            return "restored"
        except Exception as err:
            log(f"{name}: cannot be restored ({err}); booting it")
            try:
                guest.domain().destroy()
            except Exception:
                pass
            if os.path.exists(disk):
                os.unlink(disk)
            shutil.rmtree(saved, ignore_errors=True)

    cluster.in_host(host, [script, "start"], env=env)
    guest.wait_agent(300)
    guest.check(["/bin/sh", "-c", "systemctl is-system-running --wait || true; sync"], timeout=180)
    # Saved and restored at once, so that a fresh cluster and a restored one
    # are in the same state and a state that does not restore shows here.
    part = f"states/.new.{os.getpid()}.{name}"
    os.makedirs(f"{cluster.cache}/{part}", exist_ok=True)
    try:
        guest.domain().save(f"/var/cache/drover/{part}/ram.save")
        shutil.copyfile(disk, f"{cluster.cache}/{part}/disk.qcow2")
        shutil.rmtree(saved, ignore_errors=True)
        os.rename(f"{cluster.cache}/{part}", saved)
    finally:
        shutil.rmtree(f"{cluster.cache}/{part}", ignore_errors=True)
    restore(cluster, guest, host, env, directory, disk)
    return "booted"


def destroy(cluster, name):
    """Ends the guest's QEMU, if it has one, and forgets its disk."""
    host = cluster.guest(name)["host"]
    domain = Guest(cluster, name, host).domain()
    if domain.isActive():
        domain.destroy()
    domain.undefine()
    disk = f"{cluster.var_dir}/{host}/images/{name}.qcow2"
    if os.path.exists(disk):
        os.unlink(disk)


def restore(cluster, guest, host, env, directory, disk):
    shutil.copyfile(f"{cluster.cache}/{directory}/disk.qcow2", disk)
    os.utime(f"{cluster.cache}/{directory}")
    cluster.in_host(host, ["/vagrant/provision/guest.sh", "define"], env=env)
    guest.conn.restore(f"/var/cache/drover/{directory}/ram.save")
    guest.wait_agent(60)
    now = time.time()
    guest.domain().setTime({"seconds": int(now), "nseconds": int(now % 1 * 1e9)})


def clean_cache(cluster):
    """Removes what a killed `up` left half written in the cache."""
    states = f"{cluster.cache}/states"
    if not os.path.isdir(states):
        return
    for entry in os.listdir(states):
        match = re.match(r"\.new\.(\d+)\.", entry)
        if match and ns.start_time(int(match.group(1))) is None:
            shutil.rmtree(f"{states}/{entry}", ignore_errors=True)
