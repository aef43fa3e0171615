output "tracking_uri" {
  description = "MLFLOW_TRACKING_URI for clients."
  value       = "https://${local.host}"
}

output "hosts" {
  description = "Host names that Cloud Run gives the service. Put the second one into the variable hosts."
  value       = [for url in flatten(google_cloud_run_v2_service.mlflow[*].urls) : trimprefix(url, "https://")]
}

output "image_repository" {
  description = "Where the image is pushed, as image_repository/server:TAG."
  value       = "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.images.repository_id}"
}

output "trainer" {
  description = "Service account for training."
  value       = google_service_account.trainer.email
}
