# shellcheck shell=bash
# What is created, one function for each; the variables come from azure.sh.

OWNER=cryptopulse-azure
PROVIDERS="Microsoft.ContainerInstance Microsoft.ContainerRegistry Microsoft.Databricks Microsoft.EventHub
    Microsoft.ManagedIdentity Microsoft.Storage"
DATABRICKS_API=2024-05-01

register_providers() { # a new subscription knows none of them
    local provider state
    for provider in $PROVIDERS; do
        state=unknown
        [ "$MODE" = plan ] || state=$(look provider show --namespace "$provider" --query registrationState)
        if [ "$state" = Registered ]; then continue; fi
        say "registering $provider"
        change provider register --namespace "$provider" --wait
    done
}

group_owner() { # prints nothing when there is no such group, `nobody` when it has no tag
    if found group show --name "$GROUP"; then
        look group show --name "$GROUP" --query "tags.managed_by || 'nobody'"
    fi
}

ensure_group() {
    local owner=
    [ "$MODE" = plan ] || owner=$(group_owner)
    case $owner in
    "$OWNER") say "exists   resource group $GROUP" ;;
    "")
        say "creating resource group $GROUP"
        change group create --name "$GROUP" --location "$LOCATION" --tags "managed_by=$OWNER"
        ;;
    *) fail "Resource group $GROUP exists and was not made by this script; choose another name with --prefix." ;;
    esac
}

ensure_event_hub() {
    ensure "Event Hubs namespace $NAMESPACE" eventhubs namespace show -- \
        eventhubs namespace create --location "$LOCATION" --sku Standard --capacity 1 --enable-kafka true \
        --enable-auto-inflate false --minimum-tls-version 1.2 -- \
        --resource-group "$GROUP" --name "$NAMESPACE"
    # One partition keeps the order of all products and is one throughput unit's worth; Standard can't add one later.
    ensure "event hub $HUB" eventhubs eventhub show -- \
        eventhubs eventhub create --partition-count 1 --cleanup-policy Delete --retention-time-in-hours 168 -- \
        --resource-group "$GROUP" --namespace-name "$NAMESPACE" --name "$HUB"
    # A starting producer looks at the newest messages, to find the trades that it missed while it was down.
    ensure_rule producer Send Listen
    ensure_rule processing Listen
}

ensure_rule() { # name, rights
    local name=$1
    shift
    ensure "access rule $name ($*)" eventhubs eventhub authorization-rule show -- \
        eventhubs eventhub authorization-rule create --rights "$@" -- \
        --resource-group "$GROUP" --namespace-name "$NAMESPACE" --eventhub-name "$HUB" --name "$name"
}

connection_string() { # of an access rule; the caller must not print it nor hand it over as an argument
    look eventhubs eventhub authorization-rule keys list --resource-group "$GROUP" --namespace-name "$NAMESPACE" \
        --eventhub-name "$HUB" --name "$1" --query primaryConnectionString
}

ensure_registry() {
    ensure "container registry $REGISTRY" acr show -- \
        acr create --location "$LOCATION" --sku Basic --admin-enabled false -- \
        --resource-group "$GROUP" --name "$REGISTRY"
}

image_tag() { # names what the image is built from, so an unchanged source is not built again
    local version
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$ROOT/pyproject.toml")
    printf 'cryptopulse:%s-%s\n' "$version" "$(source_hash | cut -c 1-12)"
}

source_hash() {
    (cd "$ROOT" && find .dockerignore LICENSE README.md constraints.txt dashboards deploy/docker/Dockerfile pyproject.toml src \
        -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 "${SHA256[@]}") | sha256
}

ensure_image() {
    if [ -n "$GIVEN_IMAGE" ]; then
        say "using    image $IMAGE"
        return
    fi
    if image_is_built; then
        say "exists   image $IMAGE"
        return
    fi
    ensure_base_image
    say "building image $IMAGE in the registry (some minutes; from the root of the repository)"
    (cd "$ROOT" && change_or_explain build_refused acr build --registry "$REGISTRY" --resource-group "$GROUP" \
        --image "${IMAGE#*/}" --build-arg "BASE=$REGISTRY.azurecr.io/$BASE_TAG" --file deploy/docker/Dockerfile .)
}

ensure_base_image() { # Docker Hub limits what is pulled without an account; a copy here is pulled as often as needed
    BASE=$(sed -n 's/^ARG BASE=//p' "$ROOT/deploy/docker/Dockerfile") # NAME:TAG@DIGEST: Docker Hub's by its digest
    BASE_NAME=${BASE%%:*} BASE_TAG=${BASE%@*}
    BASE_SOURCE=docker.io/library/$BASE_NAME@${BASE##*@}
    if [ "$MODE" != plan ] && known_image "$BASE_NAME" "${BASE_TAG##*:}"; then
        say "exists   base image $BASE_TAG"
        return
    fi
    say "creating base image $BASE_TAG"
    change_or_explain import_refused acr import --name "$REGISTRY" --resource-group "$GROUP" --force \
        --source "$BASE_SOURCE" --image "$BASE_TAG"
}

build_refused() { # what az said
    case $1 in
    *TasksOperationsNotAllowed*)
        fail "This subscription may not build in a registry (TasksOperationsNotAllowed: trials and new subscriptions). Build \
with Docker where you are, or ask Azure's support to allow it: docker build -f deploy/docker/Dockerfile -t $IMAGE . && \
az acr login --name $REGISTRY && docker push $IMAGE. Then run this again: it finds the image."
        ;;
    *toomanyrequests*) import_refused "$1" ;;
    esac
}

import_refused() {
    case $1 in
    *toomanyrequests*)
        fail "Docker Hub refused to hand out the base image $BASE_TAG (toomanyrequests: its limit for pulls without an \
account). Run this again in an hour, or import it with an account of Docker Hub: az acr import --name $REGISTRY --source \
$BASE_SOURCE --image $BASE_TAG --username NAME --password TOKEN"
        ;;
    esac
}

image_is_built() {
    [ "$MODE" != plan ] && known_image cryptopulse "${IMAGE##*:}"
}

known_image() { # repository, tag: whether the registry has it
    local known
    # To list the tags of a repository that is not there is an error.
    known=$(look acr repository list --name "$REGISTRY" --query "[?@=='$1']") || fail "The images can't be listed."
    [ -n "$known" ] || return 1
    known=$(look acr repository show-tags --name "$REGISTRY" --repository "$1" --query "[?@=='$2']") ||
        fail "The tags of the images can't be listed."
    [ -n "$known" ]
}

ensure_role() { # what, principal id, role, scope
    local what=$1 principal=$2 role=$3 scope=$4 known=
    if [ "$MODE" != plan ]; then
        known=$(look role assignment list --scope "$scope" --role "$role" --query "[?principalId=='$principal'].id")
    fi
    if [ -n "$known" ]; then
        say "exists   $what"
        return
    fi
    say "creating $what"
    change role assignment create --assignee-object-id "$principal" --assignee-principal-type ServicePrincipal \
        --role "$role" --scope "$scope"
}

ensure_pull_identity() { # so that no password of the registry is needed
    local principal="<principal of $IDENTITY>"
    ensure "identity $IDENTITY" identity show -- identity create --location "$LOCATION" -- \
        --resource-group "$GROUP" --name "$IDENTITY"
    if [ "$MODE" != plan ]; then
        principal=$(look identity show --resource-group "$GROUP" --name "$IDENTITY" --query principalId)
    fi
    ensure_role "right of $IDENTITY to pull images" "$principal" AcrPull "$REGISTRY_ID"
}

ensure_lake() {
    ensure "storage account $ACCOUNT (hierarchical namespace)" storage account show -- \
        storage account create --location "$LOCATION" --kind StorageV2 --sku Standard_LRS \
        --enable-hierarchical-namespace true --min-tls-version TLS1_2 --https-only true \
        --allow-blob-public-access false -- \
        --resource-group "$GROUP" --name "$ACCOUNT"
    ensure "lake container $FILESYSTEM" storage container-rm show -- storage container-rm create -- \
        --resource-group "$GROUP" --storage-account "$ACCOUNT" --name "$FILESYSTEM"
}

# az's own databricks commands are an extension that has to be downloaded; `az resource` creates the same objects.
ensure_databricks() {
    local principal="<principal of $CONNECTOR>"
    ensure "Databricks workspace $WORKSPACE" resource show -- \
        resource create --is-full-object --properties "{\"location\": \"$LOCATION\", \"sku\": {\"name\": \"premium\"},
 \"properties\": {\"managedResourceGroupId\": \"$GROUP_ID-databricks\"}}" -- \
        --resource-group "$GROUP" --resource-type Microsoft.Databricks/workspaces --name "$WORKSPACE" \
        --api-version "$DATABRICKS_API"
    # Unity Catalog reads and writes the lake as this connector.
    ensure "Databricks access connector $CONNECTOR" resource show -- \
        resource create --is-full-object --properties "{\"location\": \"$LOCATION\",
 \"identity\": {\"type\": \"SystemAssigned\"}, \"properties\": {}}" -- \
        --resource-group "$GROUP" --resource-type Microsoft.Databricks/accessConnectors --name "$CONNECTOR" \
        --api-version "$DATABRICKS_API"
    DATABRICKS_HOST=
    if [ "$MODE" != plan ]; then
        principal=$(look resource show --ids "$CONNECTOR_ID" --api-version "$DATABRICKS_API" --query identity.principalId)
        DATABRICKS_HOST=https://$(look resource show --resource-group "$GROUP" --name "$WORKSPACE" --resource-type \
            Microsoft.Databricks/workspaces --api-version "$DATABRICKS_API" --query properties.workspaceUrl)
    fi
    ensure_role "right of $CONNECTOR to write the lake" "$principal" "Storage Blob Data Contributor" "$ACCOUNT_ID"
}

# What is inside the workspace: the secret of the jobs, and the right of Unity Catalog to keep tables in the lake. A new
# workspace's metastore has no storage of its own: CREATE CATALOG fails there without a managed location.
ensure_workspace_contents() {
    local scope=cryptopulse-scope key=eventhub-conn-string secret
    local credential="{\"name\": \"$CONNECTOR\", \"azure_managed_identity\": {\"access_connector_id\": \"$CONNECTOR_ID\"}}"
    if [ "$MODE" = plan ]; then
        say "storing  secret $scope/$key in the Databricks workspace"
        show databricks secrets create-scope "$scope"
        say "  $ (connection string of rule processing, by a pipe) | databricks secrets put-secret $scope $key"
        say "creating storage credential and external location $CONNECTOR"
        show databricks storage-credentials create --json "$credential"
        show databricks external-locations create "$CONNECTOR" "$LAKE_URL" "$CONNECTOR"
        return
    fi
    if ! command -v databricks >/dev/null 2>&1; then
        say "skipped: the Databricks CLI is not installed. Install it and run this again, or see README.md."
        return
    fi
    # With the resource id whoever may manage the workspace in Azure is let in, and becomes its administrator.
    export DATABRICKS_HOST DATABRICKS_AUTH_TYPE=azure-cli DATABRICKS_AZURE_RESOURCE_ID=$WORKSPACE_ID
    await_workspace
    say "storing  secret $scope/$key in the Databricks workspace"
    case $(databricks secrets list-scopes --output json) in
    *"\"$scope\""*) ;;
    *) databricks secrets create-scope "$scope" || fail "The secret scope could not be made; the Databricks CLI says why." ;;
    esac
    secret=$(connection_string processing)
    printf '%s' "$secret" | databricks secrets put-secret "$scope" "$key" ||
        fail "The secret could not be stored; the Databricks CLI says why."
    ensure_in_workspace "storage credential $CONNECTOR" storage-credentials "$CONNECTOR" --json "$credential"
    ensure_in_workspace "external location $CONNECTOR" external-locations "$CONNECTOR" \
        "$CONNECTOR" "$LAKE_URL" "$CONNECTOR"
}

await_workspace() { # a workspace that is minutes old refuses its first calls
    local attempt errors
    for attempt in 1 2 3 4 5 6 7 8; do
        if errors=$(databricks current-user me 2>&1 >/dev/null); then return; fi
        say "waiting  for the workspace to accept the sign-in ($attempt of 8)"
        sleep 15
    done
    fail "The workspace $DATABRICKS_HOST does not accept the sign-in: $errors. Open it once in a browser as the user of \
az login, which makes the user known there, and run this again."
}

ensure_in_workspace() { # what, group of commands, name, words that create it
    local what=$1 kind=$2 name=$3
    shift 3
    if databricks "$kind" get "$name" >/dev/null 2>&1; then
        say "exists   $what"
        return
    fi
    say "creating $what"
    databricks "$kind" create "$@" >/dev/null || fail "The $what could not be made; the Databricks CLI says why. It takes a \
metastore (new workspaces have one after some minutes) and the right to create it (metastore or account administrator)."
}
