data "google_project" "this" {
  project_id = var.project
}

locals {
  is_on_cloud_run = var.platform == "cloud_run"
  is_private      = var.private_network != ""
  number          = data.google_project.this.number

  apis = concat(
    [
      "artifactregistry.googleapis.com", "cloudbuild.googleapis.com",
      "cloudscheduler.googleapis.com", "compute.googleapis.com", "iam.googleapis.com",
      "iap.googleapis.com", "logging.googleapis.com", "monitoring.googleapis.com",
      "run.googleapis.com", "secretmanager.googleapis.com", "sqladmin.googleapis.com",
    ],
    local.is_on_cloud_run ? [] : ["appengine.googleapis.com", "appengineflex.googleapis.com"],
    local.is_private ? ["servicenetworking.googleapis.com"] : [],
    var.billing_account == "" ? [] : ["billingbudgets.googleapis.com"],
  )
}

resource "google_project_service" "apis" {
  for_each = toset(local.apis)

  service            = each.value
  disable_on_destroy = false
}

# For the server and its jobs, with only the roles that they need.
resource "google_service_account" "server" {
  account_id   = "mlflow-server"
  display_name = "MLflow server"
}

resource "google_project_iam_member" "server" {
  for_each = toset(["roles/cloudsql.client", "roles/logging.logWriter"])

  project = var.project
  role    = each.value
  member  = google_service_account.server.member
}

# For training, with no role but IAP's (access.tf).
resource "google_service_account" "trainer" {
  account_id   = "trainer"
  display_name = "Training with MLflow"
}

resource "google_artifact_registry_repository" "images" {
  location      = var.region
  repository_id = "mlflow"
  format        = "DOCKER"

  depends_on = [google_project_service.apis]
}

resource "google_artifact_registry_repository_iam_member" "server" {
  location   = google_artifact_registry_repository.images.location
  repository = google_artifact_registry_repository.images.name
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.server.member
}
