variable "project" {
  description = "Id of the project, which has billing and belongs to an organisation."
  type        = string
}

variable "region" {
  description = "Region of the server, the database, the bucket and the image."
  type        = string
  default     = "us-central1"
}

variable "platform" {
  description = "Where the server runs: cloud_run or app_engine."
  type        = string
  default     = "cloud_run"

  validation {
    condition     = contains(["cloud_run", "app_engine"], var.platform)
    error_message = "Set platform to cloud_run or app_engine."
  }
}

variable "image" {
  description = "Image of the jobs that migrate the tables and delete garbage. Without an image, there are no jobs."
  type        = string
  default     = ""
}

variable "served_image" {
  description = "Image of the server. Set it once the tables are migrated. Without an image, there is no server."
  type        = string
  default     = ""
}

variable "members" {
  description = "Who may use the server, such as group:data-science@example.com, besides the account for training."
  type        = set(string)
  default     = []
}

variable "permissions" {
  description = "Whether MLflow's permissions per experiment and model apply. Needs admins."
  type        = bool
  default     = false

  validation {
    condition     = !var.permissions || length(var.admins) > 0
    error_message = "Set admins to the e-mails of those who may grant permissions."
  }
}

variable "admins" {
  description = "E-mails of the users who may do everything, if permissions apply."
  type        = list(string)
  default     = []
}

variable "hosts" {
  description = "Additional host names of the server: Cloud Run's second one (output hosts), and custom domains."
  type        = list(string)
  default     = []
}

variable "max_instances" {
  description = "Largest number of instances of the server. Each opens up to 242 connections to the database, and with PostgreSQL needs 2 GB of the tier's memory. App Engine always runs one instance."
  type        = number
  default     = 4
}

variable "min_instances" {
  description = "Instances that Cloud Run keeps running. With 0, the first request after a pause waits until one has started."
  type        = number
  default     = 0
}

variable "database" {
  description = "Kind of database: mysql or postgresql."
  type        = string
  default     = "mysql"

  validation {
    condition     = contains(["mysql", "postgresql"], var.database)
    error_message = "Set database to mysql or postgresql."
  }
}

variable "tier" {
  description = "Machine type of the database. The default has a shared processor and no service level agreement."
  type        = string
  default     = "db-g1-small"
}

variable "is_regional" {
  description = "Whether a standby in another zone takes over if the database fails. Needs a tier with dedicated processors."
  type        = bool
  default     = false
}

variable "private_network" {
  description = "Name of a VPC network in which the database gets a private address, and no public one. Without a network, the server uses Cloud SQL's socket."
  type        = string
  default     = ""
}

variable "password" {
  description = "Password of the database's user. Needed for the first plan and when password_version changes; never stored in the state."
  type        = string
  default     = null
  ephemeral   = true
  sensitive   = true
}

variable "password_version" {
  description = "Raise this number to change the password."
  type        = number
  default     = 1
}

variable "app_engine_location" {
  description = "Location of a new App Engine application, such as us-central or europe-west. Empty if the project has one."
  type        = string
  default     = ""
}

variable "app_engine_region_id" {
  description = "The region's abbreviation in App Engine's host names, such as uc for us-central1."
  type        = string
  default     = "uc"
}

variable "app_engine_service" {
  description = "App Engine service. The first one of an application must be called default."
  type        = string
  default     = "default"
}

variable "app_engine_version" {
  description = "App Engine version of the server. Change it together with served_image."
  type        = string
  default     = "v1"
}

variable "oauth_client" {
  description = "OAuth client of IAP on App Engine, if it is not the Google-managed one."
  type        = object({ id = string, secret = string })
  default     = null
}

variable "alert_emails" {
  description = "E-mail addresses that alerts are sent to."
  type        = set(string)
  default     = []
}

variable "billing_account" {
  description = "Id of the billing account, for a budget. Without one, there is no budget."
  type        = string
  default     = ""
}

variable "budget" {
  description = "Budget per month, in whole units of the billing account's currency."
  type        = number
  default     = 200
}
