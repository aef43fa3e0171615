locals {
  jobs = {
    migrate = { arguments = ["migrate"], minutes = 60 }
    gc      = { arguments = ["gc"], minutes = 360 }
  }
}

# The tables are migrated by hand, after a backup: `gcloud run jobs execute mlflow-migrate`.
resource "google_cloud_run_v2_job" "jobs" {
  for_each = var.image == "" ? {} : local.jobs

  name                = "mlflow-${each.key}"
  location            = var.region
  deletion_protection = false

  template {
    template {
      service_account = google_service_account.server.email
      max_retries     = 0
      timeout         = "${each.value.minutes * 60}s"

      containers {
        image = var.image
        args  = each.value.arguments

        dynamic "env" {
          for_each = merge(local.job_settings, local.cloud_run_settings)

          content {
            name  = env.key
            value = env.value
          }
        }

        resources {
          limits = { cpu = "1", memory = "2Gi" }
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
  }

  depends_on = [
    google_project_iam_member.server, google_secret_manager_secret_iam_member.server,
    google_secret_manager_secret_iam_member.ca, google_sql_database.mlflow, google_sql_user.mlflow,
  ]
}

# Its only role is to start the job.
resource "google_service_account" "scheduler" {
  account_id   = "mlflow-scheduler"
  display_name = "Starts MLflow's job gc"
}

resource "google_cloud_run_v2_job_iam_member" "scheduler" {
  count    = length(google_cloud_run_v2_job.jobs) > 0 ? 1 : 0
  location = var.region
  name     = google_cloud_run_v2_job.jobs["gc"].name
  role     = "roles/run.invoker"
  member   = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "gc" {
  count    = length(google_cloud_run_v2_job.jobs) > 0 ? 1 : 0
  name     = "mlflow-gc"
  region   = var.region
  schedule = "0 2 * * 0" # Sundays, before the backup
  paused   = false

  http_target {
    http_method = "POST"
    uri         = "https://run.googleapis.com/v2/${google_cloud_run_v2_job.jobs["gc"].id}:run"

    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }
}
