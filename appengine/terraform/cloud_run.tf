locals {
  # One of the service's two host names. The other one contains a random part.
  cloud_run_host     = "${local.service}-${local.number}.${var.region}.run.app"
  cloud_run_audience = "/projects/${local.number}/locations/${var.region}/services/${local.service}"
}

resource "google_cloud_run_v2_service" "mlflow" {
  provider = google-beta
  count    = local.is_on_cloud_run && var.served_image != "" ? 1 : 0

  name                = local.service
  location            = var.region
  ingress             = "INGRESS_TRAFFIC_ALL"
  iap_enabled         = true
  deletion_protection = false

  template {
    service_account = google_service_account.server.email
    # A worker handles 40 requests at once, and all of an instance's requests may reach the same worker.
    max_instance_request_concurrency = 40
    timeout                          = "3600s"

    scaling {
      min_instance_count = var.min_instances
      max_instance_count = var.max_instances
    }

    containers {
      image = var.served_image
      args  = ["serve"]

      ports {
        # Cloud Run sets PORT to this. It is for HTTP/1, with at most 32 MB per request.
        container_port = 8080
      }

      dynamic "env" {
        for_each = merge(
          local.server_settings,
          local.cloud_run_settings,
          { MLFLOW_IAP_AUDIENCE = local.cloud_run_audience },
        )

        content {
          name  = env.key
          value = env.value
        }
      }

      resources {
        # Files on their way to and from the bucket are in memory, too.
        limits            = { cpu = "2", memory = "4Gi" }
        startup_cpu_boost = true
      }

      startup_probe {
        period_seconds    = 5
        timeout_seconds   = 4
        failure_threshold = 36 # three minutes: two to wait for the database, and one to start

        http_get {
          path = "/health"
        }
      }

      liveness_probe {
        period_seconds    = 30
        timeout_seconds   = 10
        failure_threshold = 4

        http_get {
          path = "/health"
        }
      }

      volume_mounts {
        name       = "database"
        mount_path = local.database_volume.mount_path
      }
    }

    volumes {
      name = "database"

      dynamic "cloud_sql_instance" {
        for_each = local.database_volume.instances

        content {
          instances = [cloud_sql_instance.value]
        }
      }

      dynamic "secret" {
        for_each = local.database_volume.certificates

        content {
          secret = secret.value.secret

          items {
            path    = basename(local.ca_file)
            version = secret.value.version
          }
        }
      }
    }

    dynamic "vpc_access" {
      for_each = local.database_volume.networks

      content {
        egress = "PRIVATE_RANGES_ONLY"

        network_interfaces {
          network = vpc_access.value
        }
      }
    }
  }

  depends_on = [
    google_project_iam_member.server, google_secret_manager_secret_iam_member.server,
    google_secret_manager_secret_iam_member.ca, google_sql_database.mlflow, google_sql_user.mlflow,
    google_storage_bucket_iam_member.server,
  ]
}
