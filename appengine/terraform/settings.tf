locals {
  service = local.is_on_cloud_run ? "mlflow" : var.app_engine_service
  socket  = "/cloudsql/${google_sql_database_instance.mlflow.connection_name}"
  ca_file = "/secrets/database/ca.pem"

  # What the jobs and the server need.
  job_settings = merge(
    {
      MLFLOW_SERVER_DATABASE_ENGINE          = var.database
      MLFLOW_SERVER_DATABASE_PASSWORD_SECRET = "${google_secret_manager_secret.password.id}/versions/latest"
      MLFLOW_ARTIFACTS_DESTINATION           = "gs://${google_storage_bucket.artifacts.name}/artifacts"
    },
    local.is_private ? {
      MLFLOW_SERVER_DATABASE_HOST = google_sql_database_instance.mlflow.private_ip_address
    } : { MLFLOW_SERVER_DATABASE_SOCKET = local.socket },
    var.permissions ? {
      MLFLOW_IAP_PERMISSIONS = "true"
      MLFLOW_IAP_ADMINS      = join(",", var.admins)
    } : {},
  )

  server_settings = merge(
    local.job_settings,
    length(var.hosts) == 0 ? {} : { MLFLOW_SERVER_HOSTS = join(",", var.hosts) },
  )

  # Cloud Run can mount the certificate of the database; App Engine cannot.
  cloud_run_settings = local.is_private ? { MLFLOW_SERVER_DATABASE_CA = local.ca_file } : {}

  # The volume of a container on Cloud Run: the database's socket, or the certificate of its address.
  database_volume = {
    mount_path   = local.is_private ? dirname(local.ca_file) : "/cloudsql"
    instances    = local.is_private ? [] : [google_sql_database_instance.mlflow.connection_name]
    certificates = google_secret_manager_secret_version.ca
    networks     = local.is_private ? [var.private_network] : []
  }
}

resource "google_secret_manager_secret" "ca" {
  count     = local.is_private ? 1 : 0
  secret_id = "mlflow-database-ca"

  replication {
    auto {}
  }

  depends_on = [google_project_service.apis]
}

resource "google_secret_manager_secret_version" "ca" {
  count       = length(google_secret_manager_secret.ca)
  secret      = google_secret_manager_secret.ca[0].id
  secret_data = google_sql_database_instance.mlflow.server_ca_cert[0].cert
}

resource "google_secret_manager_secret_iam_member" "ca" {
  count     = length(google_secret_manager_secret.ca)
  secret_id = google_secret_manager_secret.ca[0].id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.server.member
}
