"""The host names that the server responds to."""

from __future__ import annotations

from collections.abc import Mapping

from .start_error import StartError


def hosts_of(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the App Engine service and version, and those in MLFLOW_SERVER_HOSTS.

    App Engine sets variables for project, service and version, but not for the region's
    abbreviation in URLs (``uc`` for us-central1), hence MLFLOW_SERVER_REGION_ID.

    Raises:
        StartError: if there are none.
    """
    project = environment.get("GOOGLE_CLOUD_PROJECT", "")
    service = environment.get("GAE_SERVICE", "")
    region = environment.get("MLFLOW_SERVER_REGION_ID", "")
    given = environment.get("MLFLOW_SERVER_HOSTS", "")
    hosts = [host for part in given.split(",") if (host := part.strip())]
    if project and service:
        # Old projects are named example.com:my-project, which URLs show as my-project.example.com.
        domain, _, name = project.rpartition(":")
        app = f"{name}.{domain}" if domain else name
        base = app if service == "default" else f"{service}-dot-{app}"
        version = environment.get("GAE_VERSION", "")
        names = [base, f"{version}-dot-{base}"] if version else [base]
        ends = [f".{region}.r.appspot.com"] if region else []
        hosts += [f"{name}{end}" for name in names for end in (*ends, ".appspot.com")]
    if not hosts:
        raise StartError(
            "The host names of this server are unknown: neither App Engine's GOOGLE_CLOUD_PROJECT "
            "and GAE_SERVICE nor MLFLOW_SERVER_HOSTS is set. Set MLFLOW_SERVER_HOSTS to HOST,HOST."
        )
    return hosts
