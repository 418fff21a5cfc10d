from __future__ import annotations

from pathlib import Path

import pytest

from tandem.errors import UsageError
from tandem.storage.location import Location
from tandem.storage.settings import read_settings

OWN = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush"}
NO_FILES = {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}


def files(folder: Path, config: str, credentials: str) -> dict[str, str]:
    (folder / "config").write_text(config)
    (folder / "credentials").write_text(credentials)
    return {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials")}


def test_a_location_is_read_as_people_write_it() -> None:
    assert Location.of("s3://work/models/qwen/") == Location("s3", "work", "models/qwen")
    assert str(Location("obs", "work", "") / "a" / "b") == "obs://work/a/b"
    assert Location.of("/mnt/sfs") is None
    assert Location.of("data/train.parquet") is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("gs://work/x", "gs:// is no storage that is known; use s3:// or obs://"),
        ("s3:///x", "'' is no name of a bucket"),
        ("s3://work/a//b", "no empty part"),
        ("s3://work/../b", "no .."),
    ],
)
def test_what_is_no_location_is_refused(text: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Location.of(text)


def test_the_environment_outranks_the_files_and_nothing_shows_a_key(tmp_path: Path) -> None:
    given = files(
        tmp_path,
        "[profile obs]\nregion = cn-north-4\nendpoint_url = obs.cn-north-4.myhuaweicloud.com\n",
        "[obs]\naws_access_key_id = filed\naws_secret_access_key = filedhush\n",
    )
    filed = read_settings({**given, "AWS_PROFILE": "obs"}, "obs")
    assert (filed.endpoint, filed.region) == ("https://obs.cn-north-4.myhuaweicloud.com", "cn-north-4")
    assert filed.keys is not None
    assert (filed.keys.id, filed.keys.secret, filed.keys.token) == ("filed", "filedhush", None)
    own = read_settings({**given, "AWS_PROFILE": "obs", **OWN, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9000"}, "obs")
    assert own.endpoint == "http://127.0.0.1:9000"
    assert own.keys is not None
    assert own.keys.id == "id"
    assert "hush" not in repr(filed) + repr(own)
    assert read_settings(NO_FILES, "s3").keys is None, "a machine of AWS's may have a role"


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        (OWN, "obs:// needs the address of the store; set AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "no credentials for http://127.0.0.1:1; set AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "id"}, "is set alone; set both"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_PROFILE": "x"}, "AWS_PROFILE=x: is in neither /none nor"),
    ],
)
def test_what_is_missing_is_named(environment: dict[str, str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        read_settings({**NO_FILES, **environment}, "obs")


def test_files_that_lead_elsewhere_or_are_broken_are_refused_without_their_words(tmp_path: Path) -> None:
    given = files(tmp_path, "[default]\nsso_session = work\n", "")
    with pytest.raises(UsageError, match="AWS profile default: sso_session is not understood"):
        read_settings({**given, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "s3")
    given = files(tmp_path, "", "aws_secret_access_key = hush\n")
    with pytest.raises(UsageError, match=r"credentials: cannot be read \(MissingSectionHeaderError\)") as refused:
        read_settings(given, "s3")
    assert "hush" not in str(refused.value)
