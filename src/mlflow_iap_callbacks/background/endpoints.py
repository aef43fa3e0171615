"""A table of what background logging does with each request of MLflow's REST API."""

from __future__ import annotations

from enum import Enum


class Way(Enum):
    """What happens to a request."""

    IN_BACKGROUND = "in background"  # nobody needs the response, so it is sent in the background
    AFTER_WRITES = "after writes"  # it reads or changes what was logged, which is delivered first
    AT_ONCE = "at once"


# The requests, by their names in MLflow's protobuf.
_TABLE = {
    Way.IN_BACKGROUND: """
        LogBatch LogInputs LogMetric LogModel LogOutputs LogParam SetTag UpdateRun
        FinalizeLoggedModel LogLoggedModelParamsRequest SetLoggedModelTags
    """,
    Way.AFTER_WRITES: """
        DeleteExperiment DeleteRun DeleteTag DeleteWorkspace RestoreExperiment RestoreRun
        GetMetricHistory GetMetricHistoryBulkInterval GetRun SearchDatasets SearchRuns
        CreatePresignedDownloadUrl ListArtifacts ListLoggedModelArtifacts
        DeleteLoggedModel DeleteLoggedModelTag GetLoggedModel SearchLoggedModels
        CreateModelVersion
    """,
    Way.AT_ONCE: """
        CreateExperiment DeleteExperimentTag GetExperiment GetExperimentByName SearchExperiments
        SetExperimentTag UpdateExperiment
        CreateLoggedModel CreatePresignedUploadUrl CreateRun
        CreateWorkspace GetWorkspace ListWorkspaces UpdateWorkspace

        CreateRegisteredModel DeleteRegisteredModel GetRegisteredModel RenameRegisteredModel
        SearchRegisteredModels UpdateRegisteredModel
        DeleteRegisteredModelAlias DeleteRegisteredModelTag SetRegisteredModelAlias
        SetRegisteredModelTag
        DeleteModelVersion DeleteModelVersionTag GetLatestVersions GetModelVersion
        GetModelVersionByAlias GetModelVersionDownloadUri SearchModelVersions SetModelVersionTag
        TransitionModelVersionStage UpdateModelVersion
        CreateWebhook DeleteWebhook GetWebhook ListWebhooks TestWebhook UpdateWebhook

        BatchGetTraceInfos BatchGetTraces CalculateTraceFilterCorrelation DeleteTraceTag
        DeleteTraceTagV3 DeleteTraces DeleteTracesV3 EndTrace GetOnlineTraceDetails GetTrace
        GetTraceInfo GetTraceInfoV3 LinkPromptsToTrace LinkTracesToRun QueryTraceMetrics
        SearchTraces SearchTracesV3 SearchUnifiedTraces SetTraceTag SetTraceTagV3 StartTrace
        StartTraceV3
        CreateAssessment DeleteAssessment GetAssessmentRequest UpdateAssessment
        CreateIssue GetIssue SearchIssues UpdateIssue
        CreateLabelSchema DeleteLabelSchema GetLabelSchema GetLabelSchemaByName ListLabelSchemas
        UpdateLabelSchema
        DeleteScorer GetScorer ListScorerVersions ListScorers RegisterScorer

        AddDatasetToExperiments CreateDataset DeleteDataset DeleteDatasetRecords DeleteDatasetTag
        GetDataset GetDatasetExperimentIds GetDatasetRecords RemoveDatasetFromExperiments
        SearchEvaluationDatasets SetDatasetTags UpsertDatasetRecords

        AddItemsToReviewQueue CreateReviewQueue DeleteReviewQueue GetOrCreateUserQueue
        GetReviewQueue GetReviewQueueByName ListReviewQueueItems ListReviewQueues
        RemoveItemsFromReviewQueue SetReviewQueueItemStatus UpdateReviewQueue
        CancelPromptOptimizationJob CreatePromptOptimizationJob DeletePromptOptimizationJob
        GetPromptOptimizationJob SearchPromptOptimizationJobs

        AddGuardrailToEndpoint AttachModelToGatewayEndpoint CreateGatewayBudgetPolicy
        CreateGatewayEndpoint CreateGatewayEndpointBinding CreateGatewayGuardrail
        CreateGatewayModelDefinition CreateGatewaySecret DeleteGatewayBudgetPolicy
        DeleteGatewayEndpoint DeleteGatewayEndpointBinding DeleteGatewayEndpointTag
        DeleteGatewayGuardrail DeleteGatewayModelDefinition DeleteGatewaySecret
        DetachModelFromGatewayEndpoint GetGatewayBudgetPolicy GetGatewayEndpoint
        GetGatewayGuardrail GetGatewayModelDefinition GetGatewaySecretInfo
        ListEndpointGuardrailConfigs ListGatewayBudgetPolicies ListGatewayBudgetWindows
        ListGatewayEndpointBindings ListGatewayEndpoints ListGatewayGuardrails
        ListGatewayModelDefinitions ListGatewaySecretInfos RemoveGuardrailFromEndpoint
        SetGatewayEndpointTag UpdateEndpointGuardrailConfig UpdateGatewayBudgetPolicy
        UpdateGatewayEndpoint UpdateGatewayModelDefinition UpdateGatewaySecret
    """,
}
WAYS = {name: way for way, names in _TABLE.items() for name in names.split()}


def way_of(name: str) -> Way:
    """Return what happens to a request; one that is not in the table waits."""
    return WAYS.get(name, Way.AFTER_WRITES)
