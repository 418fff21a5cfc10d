"""Rank tables gathered over ssh, from a real sshd where Debian's openssh-server is installed."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tandem
from tandem.cli import run
from tandem.errors import ProcessError, TopologyError
from tandem.topology.rank_table_gathering import Share, gather, shares
from tandem.topology.rank_table_merge import MERGED_NAME

SSHD = shutil.which("sshd") or shutil.which("/usr/sbin/sshd")
HOSTS = ["10.9.0.1", "10.9.0.2"]
"""Addresses that lead to the one sshd of the test, so that it stands for two hosts."""


def test_a_list_is_for_every_host_or_for_one() -> None:
    first, second = shares(["root@10.0.0.1", "node-2"], ["0,1", "node-2=2,3"], ["root@10.0.0.1=4,5"], api_server=True)
    assert first.words == [
        "--prefill-server-list", "0,1", "--decode-server-list", "4,5", "--api-server", "--local-ip", "10.0.0.1",
    ]  # fmt: skip
    assert second.words == ["--prefill-server-list", "0,1", "2,3"]
    (third,) = shares(["fe80::1"], ["0"], [], api_server=False)
    assert third.words[-2:] == ["--local-ip", "fe80::1"]


@pytest.mark.parametrize(
    ("hosts", "prefill", "message"),
    [
        (["-oProxyCommand=x"], ["0"], "host '-oProxyCommand=x' is not an address or a name; write it like 10.0.0.18"),
        (["a;b"], ["0"], "host 'a;b' is not an address or a name"),
        (["a b"], ["0"], "host 'a b' is not an address or a name"),
        (["-x@a"], ["0"], "host '-x@a' is not an address or a name"),
        (["@a"], ["0"], "host '@a' is not an address or a name"),
        (["a..b"], ["0"], "host 'a..b' is not an address or a name"),
        (["999.1.1.1"], ["0"], "host '999.1.1.1' is not an address or a name"),
        (["u@0.0.0.0"], ["0"], "host 'u@0.0.0.0' is not an address or a name"),
        ([""], ["0"], "host '' is not an address or a name"),
        ([], ["0"], "--hosts names no host; name those to ask after it, or leave it out to ask none"),
        (["a", "a"], ["0"], "host a is given twice; name each host once"),
        (["a", "b"], ["a=0"], "host b would have no instance; give it a device list, or leave it out of --hosts"),
        (["a"], ["c=0"], "device list 'c=0' is for 'c', which --hosts does not name"),
        (["a"], ["$(x)"], "device list '$(x)' is not device numbers between commas"),
    ],
)
def test_what_is_asked_of_hosts_is_checked(hosts: list[str], prefill: list[str], message: str) -> None:
    with pytest.raises(TopologyError) as raised:
        shares(hosts, prefill, [], api_server=False)
    assert message in str(raised.value)


def fake_ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (folder / "ssh").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo Permission denied >&2; exit 255", "a: ssh failed (Permission denied); make `ssh` to it work without"),
        ("echo tandem: not found >&2; exit 127", "a: has no tandem on its PATH (tandem: not found); install it there"),
        ("echo no card >&2; exit 2", "a: exit code 2 (no card); mend that there, or run gen on that host"),
        ("echo hello", "a: line 1, column 1: Expecting value; mend the JSON syntax"),
        ("echo '{}'", "a: answered nothing, no rank table; install the same"),
        ("printf '\\377'", "a: line 1, column 1: Expecting value; mend the JSON syntax"),
        ("""echo '{"../x.json": {}}'""", "a: answered ../x.json, no rank table; install the same tandem there"),
        ("""echo '{"global_ranktable_1.json": 1}'""", "a: answered global_ranktable_1.json, no rank table"),
    ],
)
def test_a_host_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str) -> None:
    fake_ssh(tmp_path, monkeypatch, body)
    with pytest.raises((ProcessError, TopologyError)) as raised:
        gather([Share(host="a", prefill=["0"], decode=[], api_server=False)], "tandem")
    assert message in str(raised.value)


ANSWER = f'PYTHONPATH={Path(tandem.__file__).parents[1]} exec {sys.executable} -c "$code" "$@"'
ALONE = """shift 6; code='
import sys
from tandem.cli import run
from tandem.topology import rank_table_set
rank_table_set.local_address = lambda: "127.0.0.1"
sys.exit(run(sys.argv[2:]))'
"""
"""An ssh to hosts without a route out."""


def test_hosts_of_one_address_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ssh(tmp_path, monkeypatch, ALONE + ANSWER)
    gen = ["ranktable", "gen", "--prefill-server-list", "n1=0", "--decode-server-list", "n2=1", "--api-server"]
    assert run([*gen, "--hosts", "n1", "n2", "--save-dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "tandem: n1 and n2 both made global_ranktable_127.0.0.1.json, so both have one address; name them after "
        "--hosts by the addresses that others reach, each by its own\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_loopback_address_of_a_host_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ssh(tmp_path, monkeypatch, ALONE + ANSWER)
    gen = ["ranktable", "gen", "--prefill-server-list", "0", "--decode-server-list", "1", "--api-server"]
    assert run([*gen, "--hosts", "n1", "--save-dir", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "tandem: warning: n1: this host has no route to others, so its address in the tables is 127.0.0.1, which means "
        "another host wherever it is read; give the one that others reach with --local-ip",
        f"tandem: warning: {tmp_path / MERGED_NAME}: every instance is on 127.0.0.1, so the table holds on one host "
        "only; for several hosts, generate it again with --local-ip and an address the others can reach",
    ]
    assert len(said.out.splitlines()) == 5


def test_what_a_host_says_moves_no_cursor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, "printf 'a\\033[31mb\\n' >&2; exit 2")
    with pytest.raises(ProcessError) as raised:
        gather([Share(host="a", prefill=["0"], decode=[], api_server=False)], "tandem")
    assert "exit code 2 (a\\x1b[31mb)" in str(raised.value)


def test_ssh_gets_a_list_of_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, f'for word; do echo "$word" >> {tmp_path}/words; done; exit 9')
    with pytest.raises(ProcessError):
        gather(shares(["u@10.0.0.1"], ["0,1"], [], api_server=True), "/opt/t/bin/tandem")
    assert (tmp_path / "words").read_text().split() == [
        "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "--", "u@10.0.0.1", "/opt/t/bin/tandem", "ranktable", "gen",
        "--json", "--prefill-server-list", "0,1", "--api-server", "--local-ip", "10.0.0.1",
    ]  # fmt: skip
    with pytest.raises(TopologyError, match="--remote-tandem 'a; b' is not a path"):
        gather([], "a; b")


def test_options_of_this_host_do_not_go_with_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--local-ip", "10.0.0.1"], ["--local-ip", ""], ["--device-ip", "0=10.0.0.1"], ["--json"]):
        assert run(["ranktable", "gen", "--hosts", "a", "--prefill-server-list", "0", *option]) == 2
        assert f"{option[0]} does not go with --hosts; leave it out" in capsys.readouterr().err


def test_options_for_hosts_do_not_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gen = ["ranktable", "gen", "--prefill-server-list", "0"]
    for words, message in (
        (["--hosts"], "--hosts names no host; name those to ask after it"),
        (["--hosts", "a", "--remote-tandem", ""], "--remote-tandem '' is not a path"),
        (["--remote-tandem", "/opt/tandem"], "--remote-tandem is the command on other hosts; name them with --hosts"),
        (["--local-ip", ""], "local ip '' is no address or name of a host"),
        (["--device-ip", "0=10.0.0.1", "0=10.0.0.2"], "--device-ip 0=... is given twice; keep one of the two"),
    ):
        assert run([*gen, *words]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A real sshd on a free port, `ssh` to HOSTS leading to it, and a tandem to run there."""
    if SSHD is None:
        pytest.skip("sshd is not installed; apt install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it when it starts as root
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host\nPidFile none\nAuthorizedKeysFile {tmp_path}/user.pub\nStrictModes no\n"
        "UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host *\nHostName 127.0.0.1\nPort {port}\nIdentityFile {tmp_path}/user\nIdentitiesOnly yes\n"
        f"UserKnownHostsFile {tmp_path}/known\nStrictHostKeyChecking accept-new\nUser {getpass.getuser()}\n"
    )
    source = Path(tandem.__file__).parents[1]
    (tmp_path / "tandem").write_text(f'#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -m tandem "$@"\n')
    (tmp_path / "tandem").chmod(0o755)
    real = shutil.which("ssh")
    fake_ssh(tmp_path, monkeypatch, f'exec {real} -F {tmp_path}/ssh_config "$@"')
    command = [SSHD, "-D", "-e", "-p", str(port), "-o", "ListenAddress=127.0.0.1", "-f", str(tmp_path / "sshd_config")]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as server:
        try:
            wait_for(port)
            yield tmp_path
        finally:
            server.terminate()


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("sshd does not listen")


@pytest.mark.sshd
def test_tables_are_gathered_over_a_real_ssh(sshd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = sshd / "tables"
    command = ["ranktable", "gen", "--hosts", *HOSTS, "--save-dir", str(out), "--remote-tandem", str(sshd / "tandem")]
    lists = ["--prefill-server-list", "10.9.0.1=4,5", "--decode-server-list", "6,7", "--api-server"]
    assert run([*command, *lists]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == [
        "global_ranktable_10.9.0.1.json", "local_ranktable_10.9.0.1_45.json", "local_ranktable_10.9.0.1_67.json",
        "local_ranktable_10.9.0.1_host.json", "global_ranktable_10.9.0.2.json", "local_ranktable_10.9.0.2_67.json",
        MERGED_NAME,
    ]  # fmt: skip
    local = [str(path) for path in out.glob("local_*")]
    assert run(["ranktable", "check", "--global", str(out / MERGED_NAME), "--local", *local]) == 0
    merged = json.loads((out / MERGED_NAME).read_text())
    assert [len(group["server_list"]) for group in merged["server_group_list"]] == [1, 1, 2]
    assert run([*command, "--prefill-server-list", "1", "--decode-server-list", "1"]) == 1
    assert "device 1 is in prefill instance 0 and in decode instance 0" in capsys.readouterr().err
