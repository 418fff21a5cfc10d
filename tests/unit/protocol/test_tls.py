"""The PEM files of a connection: what is refused at the start, by option and file, and what is read again."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from certificates import Authority, Pair, openssl

from tandem.errors import UsageError
from tandem.protocol.renewal import Renewal
from tandem.protocol.tls import TlsFiles, client_tls, server_tls


def refusal(cert: Path | None, key: Path | None, ca: Path | None = None) -> str:
    with pytest.raises(UsageError) as error:
        server_tls(cert, key, ca)
    return str(error.value)


def test_without_options_there_is_none() -> None:
    assert server_tls(None, None, None) is None
    assert client_tls(None, None, None) is None


def test_half_of_what_is_needed(pair: Pair, authority: Authority) -> None:
    assert refusal(pair.cert, None) == "--tls-cert, --tls-key: belong together; give both"
    assert refusal(None, None, authority.cert) == "--tls-client-ca: needs --tls-cert and --tls-key; give them, too"
    with pytest.raises(UsageError, match=r"^--worker-cert, --worker-key: belong together"):
        client_tls(None, pair.key, None)
    assert client_tls(None, None, authority.cert) is not None


def test_each_wrong_file_is_named(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    missing, empty, damaged = tmp_path / "missing", tmp_path / "empty", tmp_path / "damaged"
    empty.touch()
    damaged.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert refusal(missing, pair.key).startswith(f"--tls-cert {missing}: cannot be read (No such file")
    assert refusal(pair.cert, missing).startswith(f"--tls-key {missing}: cannot be read (No such file")
    assert refusal(pair.cert, tmp_path).startswith(f"--tls-key {tmp_path}: cannot be read (")
    assert refusal(empty, pair.key) == f"--tls-cert {empty}: holds no certificate in PEM form; give the file that does"
    assert refusal(pair.key, pair.key).startswith(f"--tls-cert {pair.key}: holds no certificate")
    assert refusal(pair.cert, pair.cert).startswith(f"--tls-key {pair.cert}: holds no private key")
    assert refusal(damaged, pair.key).startswith(f"--tls-cert {damaged}, --tls-key {pair.key}: cannot be used (")
    assert refusal(pair.cert, pair.key, empty).startswith(f"--tls-client-ca {empty}: holds no certificate")
    assert refusal(pair.cert, pair.key, damaged).startswith(f"--tls-client-ca {damaged}: holds a certificate that is")
    other = authority.pair.key
    assert refusal(pair.cert, other) == (
        f"--tls-key {other}: is not the key of --tls-cert {pair.cert}; give one pair's"
    )


def test_an_encrypted_key_is_refused_and_nobody_is_asked(pair: Pair, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", locked)
    assert refusal(pair.cert, locked).startswith(f"--tls-key {locked}: is encrypted")


def test_what_is_spoken(pair: Pair, authority: Authority) -> None:
    server = TlsFiles(side="server", cert=pair.cert, key=pair.key)
    assert server.context().verify_mode == ssl.CERT_NONE
    asking = TlsFiles(side="server", cert=pair.cert, key=pair.key, ca=authority.cert)
    assert asking.context().verify_mode == ssl.CERT_REQUIRED
    client = TlsFiles(side="client", ca=authority.cert).context()
    assert (client.check_hostname, client.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert client.minimum_version == server.context().minimum_version == ssl.TLSVersion.TLSv1_2


def shown(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """The certificate that a client of these two contexts sees."""

    async def scenario() -> bytes | None:
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
            writer.close()
            return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    return asyncio.run(scenario())


def test_a_new_pair_is_used_and_half_of_one_is_not(
    pair: Pair, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Pair(tmp_path / "cert", tmp_path / "key")
    own.cert.write_bytes(pair.cert.read_bytes())
    own.key.write_bytes(pair.key.read_bytes())
    renewal = Renewal()
    server = TlsFiles(side="server", cert=own.cert, key=own.key).kept_new(renewal)
    client = TlsFiles(side="client", ca=authority.cert).context()
    first = shown(server, client)
    renewal.look()
    assert not caplog.records
    later = authority.signs(tmp_path, "later")
    own.cert.write_bytes(later.cert.read_bytes())
    renewal.look()
    assert f"{own.key}: is not the key of" in caplog.text
    assert "what was read before stays in use" in caplog.text
    assert shown(server, client) == first
    own.key.write_bytes(later.key.read_bytes())
    renewal.look()
    assert shown(server, client) == ssl.PEM_cert_to_DER_cert(later.cert.read_text()) != first
