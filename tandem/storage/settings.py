"""Where an S3-compatible store is, and who may use it: as the environment and the files of AWS's own tools say.

    AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL       the store's address; without it AWS's own
    AWS_REGION, AWS_DEFAULT_REGION
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
    AWS_PROFILE                                 which section of the files below; `default` without it
    AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE    ~/.aws/credentials, ~/.aws/config

The environment outranks the files. Of a profile the keys themselves, region and endpoint_url are read; one that has its
keys from elsewhere (sso_session, role_arn, credential_process) is refused by name.

Source: the AWS SDKs and Tools Reference Guide, shared config and credentials files.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tandem.errors import UsageError

ELSEWHERE: Final = ("sso_session", "sso_start_url", "role_arn", "credential_process")
ROLES: Final = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE")  # fmt: skip
"""Variables with which a process gets its keys in another way, or needs none."""
ANY_REGION: Final = "us-east-1"
"""What stores that have no regions take."""


@dataclass(frozen=True)
class Keys:
    """Who asks; never shown."""

    id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to reach a store."""

    endpoint: str | None
    """With its scheme; None for AWS."""
    region: str
    keys: Keys | None
    """None where the process has a role instead, or needs none."""


def read_settings(environment: Mapping[str, str], scheme: str) -> Settings:
    """The settings for locations of a scheme.

    Raises:
        UsageError: There is no address for obs://, there are no keys, or a profile cannot be used.
    """
    profile = _profile(environment)
    endpoint = _first(environment, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    if endpoint is None and scheme == "obs":
        raise UsageError(
            "obs:// needs the address of the store; set AWS_ENDPOINT_URL, such as "
            "https://obs.cn-north-4.myhuaweicloud.com"
        )
    if endpoint is not None and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    region = _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region") or ANY_REGION
    return Settings(endpoint=endpoint, region=region, keys=_keys(environment, profile, endpoint))


def _keys(environment: Mapping[str, str], profile: Mapping[str, str], endpoint: str | None) -> Keys | None:
    own = {name.lower(): value for name, value in environment.items() if name.startswith("AWS_") and value}
    fields = own if "aws_access_key_id" in own or "aws_secret_access_key" in own else profile
    known, secret = fields.get("aws_access_key_id"), fields.get("aws_secret_access_key")
    if known and secret:
        return Keys(known, secret, fields.get("aws_session_token"))
    if known or secret:
        raise UsageError("one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set alone; set both")
    if any(environment.get(name) for name in ROLES):
        return None
    if other := next((name for name in ELSEWHERE if name in profile), None):
        raise UsageError(
            f"AWS profile {environment.get('AWS_PROFILE', 'default')}: {other} is not understood; set the keys that it "
            "leads to, as `aws configure export-credentials --format env` prints them"
        )
    if endpoint is not None:  # no machine of AWS's, which could have a role of its own
        raise UsageError(
            f"there are no credentials for {endpoint}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them "
            "into ~/.aws/credentials"
        )
    return None


def _profile(environment: Mapping[str, str]) -> dict[str, str]:
    name = environment.get("AWS_PROFILE", "default")
    files = (
        (environment.get("AWS_CONFIG_FILE") or "~/.aws/config", name if name == "default" else f"profile {name}"),
        (environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", name),
    )
    fields: dict[str, str] = {}
    for path, section in files:
        fields |= _section(Path(path).expanduser(), section)
    if not fields and "AWS_PROFILE" in environment:
        places = f"neither {files[0][0]} nor {files[1][0]}"
        raise UsageError(f"AWS_PROFILE={name}: is in {places}; unset it, or add it there")
    return fields


def _section(path: Path, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError) as error:
        # Its text would quote a line of the file, which may be a key.
        raise UsageError(f"{path}: cannot be read ({type(error).__name__}); mend the file") from None
    return dict(parser[section]) if parser.has_section(section) else {}


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)
