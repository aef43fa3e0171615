"""The names that a server on App Engine is called by."""

from __future__ import annotations

from collections.abc import Mapping

from .start_error import StartError


def hosts_of(environment: Mapping[str, str]) -> list[str]:
    """Exactly those of the service and of this version of it, and what MLFLOW_SERVER_HOSTS adds.

    App Engine tells project, service and version by its own variables, but not the region's
    abbreviation in its URLs (``uc`` for us-central1): that is MLFLOW_SERVER_REGION_ID.

    Raises:
        StartError: there is none.
    """
    project = environment.get("GOOGLE_CLOUD_PROJECT", "")
    service = environment.get("GAE_SERVICE", "")
    region = environment.get("MLFLOW_SERVER_REGION_ID", "")
    given = environment.get("MLFLOW_SERVER_HOSTS", "")
    hosts = [host for part in given.split(",") if (host := part.strip())]
    if project and service:
        # example.com:my-project, as old ones are called, is my-project.example.com in URLs.
        domain, _, name = project.rpartition(":")
        app = f"{name}.{domain}" if domain else name
        base = app if service == "default" else f"{service}-dot-{app}"
        version = environment.get("GAE_VERSION", "")
        names = [base, f"{version}-dot-{base}"] if version else [base]
        ends = [f".{region}.r.appspot.com"] if region else []
        hosts += [f"{name}{end}" for name in names for end in (*ends, ".appspot.com")]
    if not hosts:
        raise StartError(
            "The names that this server is called by are not known: neither App Engine's "
            "GOOGLE_CLOUD_PROJECT and GAE_SERVICE nor MLFLOW_SERVER_HOSTS is set. Set the last to "
            "HOST,HOST."
        )
    return hosts
