locals {
  host = local.is_on_cloud_run ? local.cloud_run_host : local.app_engine_host
  # The service's log. The gate's lines in it are JSON.
  gate_log = join(" AND ", [
    "resource.type = \"${local.is_on_cloud_run ? "cloud_run_revision" : "gae_app"}\"",
    "resource.labels.${local.is_on_cloud_run ? "service_name" : "module_id"} = \"${local.service}\"",
  ])
  channels    = [for channel in google_monitoring_notification_channel.emails : channel.id]
  database_id = "resource.labels.database_id = \"${var.project}:${google_sql_database_instance.mlflow.name}\""

  # Each alert is open for as long as the metric is above the threshold.
  alerts = {
    responses = {
      title = "MLflow responds with 5xx"
      filter = local.is_on_cloud_run ? join(" AND ", [
        "metric.type = \"run.googleapis.com/request_count\"",
        "metric.labels.response_code_class = \"5xx\"",
        "resource.type = \"cloud_run_revision\"",
        "resource.labels.service_name = \"${local.service}\"",
        ]) : join(" AND ", [
        "metric.type = \"appengine.googleapis.com/http/server/response_count\"",
        "metric.labels.response_code >= 500",
        "resource.type = \"gae_app\"",
        "resource.labels.module_id = \"${local.service}\"",
      ])
      aligner   = "ALIGN_DELTA"
      reducer   = "REDUCE_SUM"
      threshold = 10
      advice    = "Read the server's log. 503 means that the database, the bucket or Google's public keys are unavailable."
    }
    refusals = {
      title = "The gate refuses many requests"
      filter = join(" AND ", [
        "metric.type = \"logging.googleapis.com/user/${google_logging_metric.refusals.name}\"",
        "resource.type = \"${local.is_on_cloud_run ? "cloud_run_revision" : "gae_app"}\"",
      ])
      aligner   = "ALIGN_DELTA"
      reducer   = "REDUCE_SUM"
      threshold = 100
      advice    = "The log says which account asked for which path, and why it was refused."
    }
    disk = {
      title     = "The disk of MLflow's database is almost full"
      filter    = "metric.type = \"cloudsql.googleapis.com/database/disk/utilization\" AND resource.type = \"cloudsql_database\" AND ${local.database_id}"
      aligner   = "ALIGN_MEAN"
      reducer   = "REDUCE_MAX"
      threshold = 0.9
      advice    = "The disk should grow by itself. Look for the limit or quota that keeps it from growing."
    }
    connections = {
      title     = "MLflow's database has almost no connections left"
      filter    = "metric.type = \"cloudsql.googleapis.com/database/${local.is_mysql ? "network/connections" : "postgresql/num_backends"}\" AND resource.type = \"cloudsql_database\" AND ${local.database_id}"
      aligner   = "ALIGN_MAX"
      reducer   = "REDUCE_SUM"
      threshold = floor(0.8 * local.connections)
      advice    = "Lower max_instances, or choose a larger tier and raise the flag max_connections."
    }
  }
}

resource "google_logging_metric" "refusals" {
  name        = "mlflow_refusals"
  description = "Requests that the gate refused. It logs at most 60 of them a minute."
  filter      = "${local.gate_log} AND jsonPayload.reason:*"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"

    labels {
      key        = "status"
      value_type = "INT64"
    }
  }

  label_extractors = { status = "EXTRACT(jsonPayload.status)" }

  depends_on = [google_project_service.apis]
}

resource "google_logging_metric" "sign_ins" {
  name        = "mlflow_sign_ins"
  description = "Sign-ins. Each account that uses the server is counted once an hour."
  filter      = "${local.gate_log} AND jsonPayload.account:* AND NOT jsonPayload.reason:*"

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [google_project_service.apis]
}

resource "google_monitoring_notification_channel" "emails" {
  for_each = var.alert_emails

  display_name = each.value
  type         = "email"
  labels       = { email_address = each.value }

  depends_on = [google_project_service.apis]
}

resource "google_monitoring_alert_policy" "alerts" {
  for_each = local.alerts

  display_name          = each.value.title
  combiner              = "OR"
  notification_channels = local.channels

  conditions {
    display_name = each.value.title

    condition_threshold {
      filter          = each.value.filter
      comparison      = "COMPARISON_GT"
      threshold_value = each.value.threshold
      duration        = "300s"

      aggregations {
        alignment_period     = "300s"
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.reducer
      }
    }
  }

  documentation {
    content   = each.value.advice
    mime_type = "text/markdown"
  }
}

# IAP lets no uptime check of Google's through to the server. If IAP asks for a token, the host name,
# the certificate and IAP work. For the server, there are its probes and the alert on 5xx.
resource "google_monitoring_uptime_check_config" "iap" {
  display_name = "MLflow is behind IAP"
  period       = "300s"
  timeout      = "10s"

  http_check {
    path         = "/health"
    port         = 443
    use_ssl      = true
    validate_ssl = true
    # With this header, IAP responds with 401 and not with a redirect.
    headers = { "X-Requested-With" = "XMLHttpRequest" }

    accepted_response_status_codes {
      status_value = 401
    }
  }

  monitored_resource {
    type   = "uptime_url"
    labels = { project_id = var.project, host = local.host }
  }

  depends_on = [google_project_service.apis]
}

resource "google_monitoring_alert_policy" "uptime" {
  display_name          = "MLflow cannot be reached, or IAP is off"
  combiner              = "OR"
  notification_channels = local.channels

  conditions {
    display_name = "The uptime check fails"

    condition_threshold {
      filter          = "metric.type = \"monitoring.googleapis.com/uptime_check/check_passed\" AND resource.type = \"uptime_url\" AND metric.labels.check_id = \"${google_monitoring_uptime_check_config.iap.uptime_check_id}\""
      comparison      = "COMPARISON_GT"
      threshold_value = 1
      duration        = "600s"

      aggregations {
        alignment_period     = "600s"
        per_series_aligner   = "ALIGN_NEXT_OLDER"
        cross_series_reducer = "REDUCE_COUNT_FALSE"
        group_by_fields      = ["resource.label.host"]
      }
    }
  }
}

resource "google_billing_budget" "budget" {
  count           = var.billing_account == "" ? 0 : 1
  billing_account = var.billing_account
  display_name    = "MLflow"

  budget_filter {
    projects = ["projects/${local.number}"]
  }

  amount {
    specified_amount {
      units = tostring(var.budget)
    }
  }

  dynamic "threshold_rules" {
    for_each = [0.5, 0.9, 1]

    content {
      threshold_percent = threshold_rules.value
    }
  }

  all_updates_rule {
    monitoring_notification_channels = local.channels
  }

  depends_on = [google_project_service.apis]
}
