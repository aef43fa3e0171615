locals {
  accessor = "roles/iap.httpsResourceAccessor"
  # The map's keys must be known before the account exists.
  accessors = merge(
    { for member in var.members : member => member },
    { trainer = google_service_account.trainer.member },
  )
}

# The account with which IAP calls the service. Nobody else may call it.
resource "google_project_service_identity" "iap" {
  provider = google-beta
  count    = length(google_cloud_run_v2_service.mlflow)
  project  = var.project
  service  = "iap.googleapis.com"
}

resource "google_cloud_run_v2_service_iam_member" "iap" {
  count    = length(google_cloud_run_v2_service.mlflow)
  location = var.region
  name     = google_cloud_run_v2_service.mlflow[0].name
  role     = "roles/run.invoker"
  member   = "serviceAccount:${google_project_service_identity.iap[0].email}"
}

resource "google_iap_web_cloud_run_service_iam_member" "members" {
  for_each = length(google_cloud_run_v2_service.mlflow) > 0 ? local.accessors : {}

  project                = var.project
  location               = var.region
  cloud_run_service_name = google_cloud_run_v2_service.mlflow[0].name
  role                   = local.accessor
  member                 = each.value
}

resource "google_iap_app_engine_service_iam_member" "members" {
  for_each = length(google_app_engine_flexible_app_version.mlflow) > 0 ? local.accessors : {}

  project = var.project
  app_id  = var.project
  service = local.service
  role    = local.accessor
  member  = each.value

  depends_on = [google_app_engine_flexible_app_version.mlflow]
}
