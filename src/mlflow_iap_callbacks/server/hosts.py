"""The host names that the server responds to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .start_error import StartError

# A name in lower case or an IPv6 address; with a port, any port (*), or none.
_LABEL = "[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_HOST = re.compile(rf"({_LABEL}(\.{_LABEL})*|\[[0-9a-f:.]+\])(:([0-9]{{1,5}}|\*))?")
_REGION_ID = re.compile("[a-z]{1,4}")
# IAP's audience for a Cloud Run service, which contains all that its URL consists of.
_CLOUD_RUN = re.compile(
    r"/projects/(?P<number>[0-9]+)/locations/(?P<region>[a-z0-9-]+)/services/(?P<name>[a-z0-9-]+)"
)


def hosts_of(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the service on Cloud Run or App Engine, and those in MLFLOW_SERVER_HOSTS.

    App Engine sets variables for project, service and version, but not for the region's
    abbreviation in URLs (``uc`` for us-central1), hence MLFLOW_SERVER_REGION_ID. On Cloud Run, one
    of the service's two names is known from MLFLOW_IAP_AUDIENCE. The other one contains a random
    part.

    Raises:
        StartError: if there are none, or one of the variables is invalid.
    """
    project = environment.get("GOOGLE_CLOUD_PROJECT", "")
    service = environment.get("GAE_SERVICE", "")
    region = environment.get("MLFLOW_SERVER_REGION_ID", "")
    given = environment.get("MLFLOW_SERVER_HOSTS", "")
    hosts = [host for part in given.split(",") if (host := part.strip())]
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise StartError(
                f"MLFLOW_SERVER_HOSTS contains {host!r}, which is not the name of a host in lower "
                "case. Set it to HOST,HOST, without schemes, paths and wildcards."
            )
    if region and not _REGION_ID.fullmatch(region):
        raise StartError(
            f"MLFLOW_SERVER_REGION_ID is {region!r}. Set it to the region's abbreviation in the "
            "service's URL, such as uc for us-central1."
        )
    if project and service:
        # Old projects are named example.com:my-project, which URLs show as my-project.example.com.
        domain, _, name = project.rpartition(":")
        app = f"{name}.{domain}" if domain else name
        base = app if service == "default" else f"{service}-dot-{app}"
        version = environment.get("GAE_VERSION", "")
        names = [base, f"{version}-dot-{base}"] if version else [base]
        ends = [f".{region}.r.appspot.com"] if region else []
        hosts += [f"{name}{end}" for name in names for end in (*ends, ".appspot.com")]
    audience = environment.get("MLFLOW_IAP_AUDIENCE", "").strip()
    if found := _CLOUD_RUN.fullmatch(audience):
        hosts.append(f"{found['name']}-{found['number']}.{found['region']}.run.app")
    if not hosts:
        raise StartError(
            "The host names of this server are unknown: MLFLOW_IAP_AUDIENCE is not that of a Cloud "
            "Run service, and neither App Engine's GOOGLE_CLOUD_PROJECT and GAE_SERVICE nor "
            "MLFLOW_SERVER_HOSTS is set. Set MLFLOW_SERVER_HOSTS to HOST,HOST."
        )
    return list(dict.fromkeys(hosts))
