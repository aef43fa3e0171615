locals {
  app_engine_host = "${local.service == "default" ? "" : "${local.service}-dot-"}${var.project}.${var.app_engine_region_id}.r.appspot.com"
}

# Cannot be deleted, and its location cannot be changed.
resource "google_app_engine_application" "this" {
  count       = !local.is_on_cloud_run && var.app_engine_location != "" ? 1 : 0
  project     = var.project
  location_id = var.app_engine_location

  # Without a client, `gcloud iap web enable --resource-type=app-engine` turns on IAP.
  dynamic "iap" {
    for_each = var.oauth_client == null ? [] : [var.oauth_client]

    content {
      enabled              = true
      oauth2_client_id     = iap.value.id
      oauth2_client_secret = iap.value.secret
    }
  }

  depends_on = [google_project_service.apis]
}

# The same settings as in app.yaml; a test compares them.
resource "google_app_engine_flexible_app_version" "mlflow" {
  count = !local.is_on_cloud_run && var.served_image != "" ? 1 : 0

  service         = local.service
  version_id      = var.app_engine_version
  runtime         = "custom"
  service_account = google_service_account.server.email
  # The older version keeps running, so that traffic can return to it.
  noop_on_destroy = true

  deployment {
    container {
      image = var.served_image
    }
  }

  beta_settings = local.is_private ? {} : {
    cloud_sql_instances = google_sql_database_instance.mlflow.connection_name
  }

  env_variables = merge(local.server_settings, {
    MLFLOW_IAP_AUDIENCE     = "/projects/${local.number}/apps/${var.project}"
    MLFLOW_SERVER_REGION_ID = var.app_engine_region_id
  })

  resources {
    cpu       = 2
    memory_gb = 4
    disk_gb   = 20
  }

  manual_scaling {
    instances = 1
  }

  readiness_check {
    path              = "/health"
    check_interval    = "5s"
    timeout           = "4s"
    failure_threshold = 2
    success_threshold = 2
    app_start_timeout = "600s"
  }

  liveness_check {
    path              = "/health"
    check_interval    = "30s"
    timeout           = "10s"
    failure_threshold = 4
    success_threshold = 2
    initial_delay     = "300s"
  }

  dynamic "network" {
    for_each = local.is_private ? [var.private_network] : []

    content {
      name = network.value
    }
  }

  depends_on = [
    google_app_engine_application.this, google_artifact_registry_repository_iam_member.server,
    google_project_iam_member.server, google_secret_manager_secret_iam_member.server,
    google_sql_database.mlflow, google_sql_user.mlflow, google_storage_bucket_iam_member.server,
  ]
}
