locals {
  is_mysql = var.database == "mysql"

  # Each of an instance's two workers opens up to 121; the rest is for jobs and administrators.
  connections = (local.is_on_cloud_run ? var.max_instances : 1) * 2 * 121 + 32

  database_flags = merge(
    { max_connections = tostring(local.connections) },
    # MLflow's migrations create triggers, which binary logging otherwise forbids.
    local.is_mysql ? { log_bin_trust_function_creators = "on" } : {},
  )
}

resource "google_sql_database_instance" "mlflow" {
  name                = "mlflow"
  region              = var.region
  database_version    = local.is_mysql ? "MYSQL_8_4" : "POSTGRES_17"
  deletion_protection = true

  settings {
    edition                     = "ENTERPRISE"
    tier                        = var.tier
    availability_type           = var.is_regional ? "REGIONAL" : "ZONAL"
    disk_size                   = 10
    disk_autoresize             = true
    deletion_protection_enabled = true

    ip_configuration {
      ipv4_enabled    = !local.is_private
      private_network = local.is_private ? data.google_compute_network.private[0].id : null
      # App Engine's flexible environment accepts no other kind of server CA.
      server_ca_mode = "GOOGLE_MANAGED_INTERNAL_CA"
      # Without the CA certificate (settings.tf), connections to an address may be unencrypted.
      ssl_mode = local.is_private && !local.is_on_cloud_run ? "ALLOW_UNENCRYPTED_AND_ENCRYPTED" : "ENCRYPTED_ONLY"
    }

    backup_configuration {
      enabled    = true
      start_time = "03:00"
      # Either one turns on point-in-time recovery.
      binary_log_enabled             = local.is_mysql ? true : null
      point_in_time_recovery_enabled = local.is_mysql ? null : true
      transaction_log_retention_days = 7

      backup_retention_settings {
        retained_backups = 7
      }
    }

    maintenance_window {
      day          = 7 # Sunday
      hour         = 4 # UTC
      update_track = "stable"
    }

    dynamic "database_flags" {
      for_each = local.database_flags

      content {
        name  = database_flags.key
        value = database_flags.value
      }
    }
  }

  depends_on = [google_project_service.apis, google_service_networking_connection.private]
}

resource "google_sql_database" "mlflow" {
  name     = "mlflow"
  instance = google_sql_database_instance.mlflow.name
  # Distinguishes names that differ only in case or in spaces at the end, as PostgreSQL does.
  charset   = local.is_mysql ? "utf8mb4" : null
  collation = local.is_mysql ? "utf8mb4_0900_bin" : null
}

resource "google_secret_manager_secret" "password" {
  secret_id = "mlflow-database"

  replication {
    auto {}
  }

  depends_on = [google_project_service.apis]
}

# The secret is changed before the database, because running servers read it when the database
# rejects the old password.
resource "google_secret_manager_secret_version" "password" {
  secret                 = google_secret_manager_secret.password.id
  secret_data_wo         = var.password
  secret_data_wo_version = var.password_version
  deletion_policy        = "DISABLE"

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_sql_user" "mlflow" {
  name                = "mlflow"
  instance            = google_sql_database_instance.mlflow.name
  password_wo         = var.password
  password_wo_version = var.password_version

  depends_on = [google_secret_manager_secret_version.password]
}

resource "google_secret_manager_secret_iam_member" "server" {
  secret_id = google_secret_manager_secret.password.id
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.server.member
}

data "google_compute_network" "private" {
  count = local.is_private ? 1 : 0
  name  = var.private_network
}

resource "google_compute_global_address" "private" {
  count         = local.is_private ? 1 : 0
  name          = "mlflow-database"
  purpose       = "VPC_PEERING"
  address_type  = "INTERNAL"
  prefix_length = 20
  network       = data.google_compute_network.private[0].id
}

resource "google_service_networking_connection" "private" {
  count                   = local.is_private ? 1 : 0
  network                 = data.google_compute_network.private[0].id
  service                 = "servicenetworking.googleapis.com"
  reserved_peering_ranges = [google_compute_global_address.private[0].name]

  depends_on = [google_project_service.apis]
}
