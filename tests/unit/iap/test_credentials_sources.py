"""Every kind of token from every kind of Google credentials, with google-auth, through IAP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from credentials_helpers import KINDS, SWEEPER, get, run
from mlflow_iap_callbacks.errors import IAPConfigurationError, IAPCredentialsError
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.iap.google_identity import credentials_file
from mlflow_iap_callbacks.iap.google_tokens import Kind
from mlflow_iap_callbacks.local import LocalCloud
from mlflow_iap_callbacks.local.accounts import DESKTOP_CLIENT_ID, WORKLOAD

CLIENT = "123456789012-mlflow.apps.googleusercontent.com"
# The endpoints that issue tokens of a service account to accounts that may impersonate it.
BY_IAM = {
    "id_token": "generateIdToken",
    "signed_jwt": "signJwt",
    "access_token": "generateAccessToken",
}


@pytest.fixture
def cloud(google_cloud: LocalCloud) -> LocalCloud:
    google_cloud.members.add(SWEEPER)
    return google_cloud


def use(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))


@dataclass(frozen=True)
class Source:
    file: Callable[[LocalCloud], Path]
    first: str  # the endpoint for the source identity's token
    caller: str  # the account that asks to impersonate the service account
    impersonate: str | None = None

    @property
    def account(self) -> str:
        return self.impersonate or LocalCloud.trainer


USER, TRAINER = LocalCloud.user, LocalCloud.trainer
IMPERSONATING = {
    "ADC that impersonates, by a user": Source(
        lambda cloud: cloud.impersonated_file(source="user"), "refresh_token", USER
    ),
    "ADC that impersonates, by a key": Source(
        lambda cloud: cloud.impersonated_file(source="service_account"), "token_uri", TRAINER
    ),
    "federation that impersonates": Source(lambda cloud: cloud.federation_file(), "sts", WORKLOAD),
    "impersonate= over a gcloud user": Source(
        lambda cloud: cloud.user_file(), "refresh_token", USER, SWEEPER
    ),
    "impersonate= over a key": Source(
        lambda cloud: cloud.key_file(), "token_uri", TRAINER, SWEEPER
    ),
    "impersonate= over federation": Source(
        lambda cloud: cloud.federation_file(None), "sts", WORKLOAD, SWEEPER
    ),
    "impersonate= over ADC that impersonates": Source(
        lambda cloud: cloud.impersonated_file(), "refresh_token", TRAINER, SWEEPER
    ),
    "impersonate= over federation that impersonates": Source(
        lambda cloud: cloud.federation_file(), "sts", TRAINER, SWEEPER
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", IMPERSONATING)
def test_an_identity_that_may_impersonate_a_service_account_passes_iap_with_every_kind_of_token(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, name: str, kind: Kind
) -> None:
    source = IMPERSONATING[name]
    cloud.grant(source.caller, to=source.account)
    use(monkeypatch, source.file(cloud))
    credentials = IAPCredentials(CLIENT, kind=kind, impersonate=source.impersonate)

    assert get(cloud.url, credentials).status_code == 200

    assert (cloud.requests[-1].token_kind, cloud.requests[-1].account) == (kind, source.account)
    last = cloud.tokens[-1]
    assert (last.kind, last.account, last.source) == (kind, source.account, BY_IAM[kind])
    assert cloud.tokens[0].source == source.first
    [caller] = [
        seen.account
        for seen in cloud.google_requests
        if seen.path.endswith(f"{source.account}:{BY_IAM[kind]}")
    ]
    assert caller == source.caller


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["key_file", "GOOGLE_APPLICATION_CREDENTIALS", "gcloud"])
def test_a_key_file_passes_iap_with_every_kind_and_signs_a_jwt_without_asking_google(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, kind: Kind
) -> None:
    file = cloud.key_file()
    if how == "GOOGLE_APPLICATION_CREDENTIALS":
        use(monkeypatch, file)
    elif how == "gcloud":
        file.rename(tmp_path / "application_default_credentials.json")
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    key_file = file if how == "key_file" else None

    get(cloud.url, IAPCredentials(CLIENT, kind=kind, key_file=key_file)).raise_for_status()

    assert (cloud.requests[-1].token_kind, cloud.requests[-1].account) == (kind, cloud.trainer)
    if kind == "signed_jwt":
        assert not cloud.google_requests
    else:
        [token] = cloud.tokens
        assert (token.kind, token.account, token.source) == (kind, cloud.trainer, "token_uri")


@pytest.mark.parametrize("kind", ["id_token", "access_token"])
def test_a_user_of_an_allowlisted_desktop_client_passes_iap(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    use(monkeypatch, cloud.desktop_file())

    get(cloud.url, IAPCredentials(DESKTOP_CLIENT_ID, kind=kind)).raise_for_status()

    assert (cloud.requests[-1].token_kind, cloud.requests[-1].account) == (kind, cloud.user)
    assert {token.source for token in cloud.tokens} == {"refresh_token"}


ALL_KINDS = """
from credentials_helpers import KINDS, get
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
for kind in KINDS:
    credentials = IAPCredentials({audience!r}, kind=kind, impersonate={impersonate!r})
    get({url!r}, credentials).raise_for_status()
"""


@pytest.mark.parametrize("impersonate", [None, pytest.param(SWEEPER, marks=pytest.mark.slow)])
def test_the_metadata_server_passes_iap_with_every_kind(
    cloud: LocalCloud, tmp_path: Path, impersonate: str | None
) -> None:
    account = impersonate or cloud.vm_account
    cloud.grant(cloud.vm_account, to=account)  # signJwt is impersonation of oneself
    script = ALL_KINDS.format(audience=CLIENT, impersonate=impersonate, url=cloud.url)
    run(script, tmp_path, cloud.google_environment(), cloud.metadata_environment())

    passed = [seen for seen in cloud.requests if seen.status == 200]
    assert [(seen.token_kind, seen.account) for seen in passed] == [(k, account) for k in KINDS]
    endpoints: dict[str, str] = dict(BY_IAM)
    if not impersonate:
        endpoints |= dict.fromkeys(KINDS, "metadata")
    endpoints["signed_jwt"] = "signJwt"
    given = {(token.kind, token.account, token.source) for token in cloud.tokens}
    assert {(kind, account, endpoints[kind]) for kind in KINDS} <= given
    assert not [seen for seen in cloud.google_requests if "allowedLocations" in seen.path]


# --- without arguments -----------------------------------------------------------------------


def test_without_a_client_id_a_jwt_for_the_whole_host_is_signed(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.key_file())
    described = IAPCredentials().for_origin("https://mlflow.example.com").describe()
    assert described["kind"] == "signed_jwt"
    assert described["audience"] == "https://mlflow.example.com/*"


@pytest.mark.parametrize(
    "variables",
    [
        {"MLFLOW_IAP_CLIENT_ID": "1-a"},
        {"MLFLOW_OAUTH2_CLIENT_ID": "1-a"},
        {"MLFLOW_IAP_CLIENT_ID": "1-a", "MLFLOW_OAUTH2_CLIENT_ID": "2-b"},
        {"MLFLOW_IAP_CLIENT_ID": " ", "MLFLOW_OAUTH2_CLIENT_ID": "1-a"},
    ],
)
def test_a_client_id_in_the_environment_makes_it_an_id_token_for_that_client(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    use(monkeypatch, cloud.key_file())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    IAPCredentials().token()
    assert [(token.kind, token.audience) for token in cloud.tokens] == [("id_token", "1-a")]


def test_the_given_audience_overrides_the_environment_and_determines_the_kind(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.key_file())
    monkeypatch.setenv("MLFLOW_IAP_CLIENT_ID", "1-a")
    assert IAPCredentials("2-b").describe()["audience"] == "2-b"
    signed = IAPCredentials("https://other.example.com/*").describe()
    assert (signed["kind"], signed["audience"]) == ("signed_jwt", "https://other.example.com/*")


def test_the_argument_overrides_mlflow_iap_impersonate(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.user_file())
    monkeypatch.setenv("MLFLOW_IAP_IMPERSONATE", SWEEPER)
    cloud.grant(cloud.user, to=SWEEPER)
    assert IAPCredentials(CLIENT).describe()["account"] == SWEEPER
    assert IAPCredentials(CLIENT, impersonate=TRAINER).describe()["account"] == TRAINER


def test_an_account_does_not_impersonate_itself(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.deny(TRAINER, on=TRAINER)
    use(monkeypatch, cloud.key_file())
    get(cloud.url, IAPCredentials(CLIENT, impersonate=TRAINER)).raise_for_status()
    assert [token.source for token in cloud.tokens] == ["token_uri"]


def test_a_desktop_client_without_a_client_id_uses_its_own_id_token(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.desktop_file())
    get(cloud.url, IAPCredentials()).raise_for_status()
    assert (cloud.requests[-1].token_kind, cloud.requests[-1].account) == ("id_token", cloud.user)


def test_a_jwt_is_not_signed_without_a_server(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.key_file())
    with pytest.raises(IAPConfigurationError, match="for_origin"):
        IAPCredentials().token()


def test_an_id_token_requires_a_client_id(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.key_file())
    with pytest.raises(IAPConfigurationError, match="MLFLOW_IAP_CLIENT_ID"):
        IAPCredentials(kind="id_token").token()


@pytest.mark.parametrize("kind", KINDS)
def test_describe_shows_source_kind_account_audience_and_lifetime(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    file = cloud.desktop_file() if kind == "access_token" else cloud.key_file()
    use(monkeypatch, file)
    described = IAPCredentials(CLIENT, kind=kind).for_origin(cloud.url).describe()
    host = cloud.url.removeprefix("http://")
    audiences = {"id_token": CLIENT, "signed_jwt": f"https://{host}/*", "access_token": "none"}
    assert list(described) == ["source", "kind", "account", "audience", "lifetime"]
    assert str(file) in described["source"]
    assert "GOOGLE_APPLICATION_CREDENTIALS" in described["source"]
    assert described["kind"] == kind
    assert described["account"] == (cloud.user if kind == "access_token" else cloud.trainer)
    assert described["audience"].startswith(audiences[kind])
    seconds, unit = described["lifetime"].split()
    assert 3590 <= int(seconds) <= 3601
    assert unit == "s"


def test_the_description_names_account_and_file(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, cloud.desktop_file())
    credentials = IAPCredentials()
    assert str(credentials) == "no token yet"
    credentials.token()
    assert f"an OIDC ID token of {cloud.user}, from authorized_user file" in str(credentials)
    assert "a desktop OAuth client" in str(credentials)


# --- what an identity cannot obtain ----------------------------------------------------------

REFUSED = """
from mlflow_iap_callbacks.iap.credentials import IAPCredentials
from mlflow_iap_callbacks.errors import IAPCredentialsError
for kind in {kinds!r}:
    try:
        IAPCredentials({audience!r}, kind=kind).for_origin("https://mlflow.example.com").token()
    except IAPCredentialsError as error:
        print(str(error).replace("\\n", " "))
"""


@dataclass(frozen=True)
class Refused:
    file: Callable[[LocalCloud], Path]
    audience: str | None
    kinds: tuple[Kind | None, ...]
    type: str
    says: tuple[str, ...]


IMPERSONATE = "MLFLOW_IAP_IMPERSONATE"
UNSERVED = {
    "gcloud user, signed JWT": Refused(
        lambda cloud: cloud.user_file(),
        None,
        (None, "signed_jwt"),
        "authorized_user",
        ("a person has no key", IMPERSONATE, "desktop OAuth client"),
    ),
    "gcloud user, ID token": Refused(
        lambda cloud: cloud.user_file(),
        CLIENT,
        (None, "id_token"),
        "authorized_user",
        (f"for {CLIENT}", "764086051850", IMPERSONATE, "desktop OAuth client"),
    ),
    "gcloud user, ID token for nobody": Refused(
        lambda cloud: cloud.user_file(),
        None,
        ("id_token",),
        "authorized_user",
        ("an OAuth client of IAP", "764086051850", IMPERSONATE, "desktop OAuth client"),
    ),
    "desktop client, another's ID token": Refused(
        lambda cloud: cloud.desktop_file(),
        CLIENT,
        (None, "id_token"),
        "authorized_user",
        (f"for {CLIENT}", DESKTOP_CLIENT_ID, IMPERSONATE, "MLFLOW_IAP_CLIENT_ID"),
    ),
    "federation without an account": Refused(
        lambda cloud: cloud.federation_file(None),
        CLIENT,
        (None, *KINDS),
        "external_account",
        ("identities of other clouds", IMPERSONATE, "--service-account"),
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if "gcloud user, ID" in name else ())
        for name in UNSERVED
    ],
)
def test_a_token_that_an_identity_cannot_obtain_is_an_error_instead_of_the_machines_own_token(
    cloud: LocalCloud, tmp_path: Path, name: str
) -> None:
    case = UNSERVED[name]
    file = case.file(cloud)
    messages = run(
        REFUSED.format(kinds=case.kinds, audience=case.audience),
        tmp_path,
        cloud.google_environment(),
        cloud.metadata_environment(),
        {"GOOGLE_APPLICATION_CREDENTIALS": str(file)},
    ).splitlines()

    assert len(messages) == len(case.kinds)
    for message in messages:
        for part in (str(file), case.type, *case.says):
            assert part in message
    assert not [token for token in cloud.tokens if token.account == cloud.vm_account]
    assert not [seen for seen in cloud.google_requests if "computeMetadata" in seen.path]


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_names_a_missing_token_creator_role(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    use(monkeypatch, cloud.impersonated_file())
    cloud.deny(cloud.user, on=TRAINER)
    with pytest.raises(
        IAPCredentialsError, match=r"roles/iam\.serviceAccountTokenCreator"
    ) as caught:
        IAPCredentials(CLIENT, kind=kind).for_origin(cloud.url).token()
    assert not caught.value.transient


def test_a_folder_of_gcloud_that_cannot_be_looked_into_has_no_sign_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    # The same kind of error, for root too, as in a container whose user does not own its HOME.
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path.joinpath(*["d" * 200] * 25)))
    assert credentials_file(None) is None
