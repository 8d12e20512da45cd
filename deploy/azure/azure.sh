#!/usr/bin/env bash
# CryptoPulse on Azure: creates what is missing, tells what it does, takes it down again. README.md has the whole story.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
# shellcheck source=deploy/azure/calls.sh
. "$HERE/calls.sh"
# shellcheck source=deploy/azure/resources.sh
. "$HERE/resources.sh"
# shellcheck source=deploy/azure/container.sh
. "$HERE/container.sh"

usage() {
    cat <<'TEXT'
Usage: azure.sh [plan|up|down|cost|names] [options]

  plan   print every command that `up` would run on an empty subscription; runs none of them (the default)
  up     create what is missing; run it again after a failure or a change, it leaves alone what is there
  down   delete the resource group that `up` made, with all that is in it
  cost   what it costs, and how to work it out
  names  print the names and addresses of the deployment

Options (each has an environment variable, which the option overrides):
  --subscription ID   AZURE_SUBSCRIPTION_ID   the subscription; default: the one that `az account show` names
  --location REGION   AZURE_LOCATION          default: eastus
  --prefix TEXT       AZURE_PREFIX            3 to 11 lower-case letters and digits; default: cryptopulse
  --products IDS      PRODUCTS                as in BTC-USD,ETH-USD (the default); "" for all that are traded in USD
  --image NAME        CRYPTOPULSE_IMAGE       an image that is there already, in place of a build in the registry
  --restart POLICY    AZURE_RESTART           Always (the default), OnFailure or Never, of the producer's container
  --yes               do not ask before deleting
TEXT
}

read_options() {
    MODE=plan
    SUBSCRIPTION=${AZURE_SUBSCRIPTION_ID:-}
    LOCATION=${AZURE_LOCATION:-eastus}
    PREFIX=${AZURE_PREFIX:-cryptopulse}
    PRODUCTS=${PRODUCTS-BTC-USD,ETH-USD}
    GIVEN_IMAGE=${CRYPTOPULSE_IMAGE:-}
    RESTART=${AZURE_RESTART:-Always}
    YES=no
    case ${1:-} in
    plan | up | down | cost | names) MODE=$1 && shift ;;
    -h | --help) usage && exit 0 ;;
    esac
    while [ $# -gt 0 ]; do
        case $1 in
        --yes) YES=yes ;;
        -h | --help) usage && exit 0 ;;
        --subscription | --location | --prefix | --products | --image | --restart)
            [ $# -gt 1 ] || fail "$1 needs a value. See azure.sh --help."
            case $1 in
            --subscription) SUBSCRIPTION=$2 ;;
            --location) LOCATION=$2 ;;
            --prefix) PREFIX=$2 ;;
            --products) PRODUCTS=$2 ;;
            --image) GIVEN_IMAGE=$2 ;;
            --restart) RESTART=$2 ;;
            esac
            shift
            ;;
        *) fail "$1: there is no such command or option. See azure.sh --help." ;;
        esac
        shift
    done
    check "$PREFIX" '^[a-z][a-z0-9]{2,10}$' "--prefix $PREFIX: 3 to 11 lower-case letters and digits, a letter first."
    check "$LOCATION" '^[a-z0-9]+$' "--location $LOCATION: a region's name, as in eastus (az account list-locations)."
    check "$PRODUCTS" '^([A-Z0-9]+-[A-Z0-9]+(,[A-Z0-9]+-[A-Z0-9]+)*)?$' "--products $PRODUCTS: write BTC-USD,ETH-USD."
    check "$GIVEN_IMAGE" '^([a-z0-9.-]+/[a-z0-9./_-]+(:[A-Za-z0-9._-]+)?(@sha256:[0-9a-f]{64})?)?$' \
        "--image $GIVEN_IMAGE: write registry/name:tag."
    check "$RESTART" '^(Always|OnFailure|Never)$' "--restart $RESTART: Always, OnFailure or Never."
}

check() { # value, extended regular expression, what to say when it does not match
    printf '%s\n' "$1" | grep -Eq "$2" || fail "$3"
}

NOWHERE=00000000-0000-0000-0000-000000000000

find_subscription() { # the one asked for, or the one that az is signed in to
    local error
    if [ "$MODE" = plan ] && [ -n "$SUBSCRIPTION" ]; then return 0; fi
    if ! command -v az >/dev/null 2>&1; then
        error="The Azure CLI, az, is not installed: https://learn.microsoft.com/cli/azure/install-azure-cli"
    elif ! SUBSCRIPTION=$(az account show ${SUBSCRIPTION:+--subscription "$SUBSCRIPTION"} \
        --query id --output tsv --only-show-errors 2>/dev/null); then
        error="The Azure CLI is not signed in, or does not know the subscription: run az login."
    else
        return 0
    fi
    [ "$MODE" = plan ] || fail "$error"
    SUBSCRIPTION=$NOWHERE
    say "No subscription is known, so the names below end in the wrong letters. $error"
}

name_things() { # names are the same for the same subscription and prefix, and unique in the world
    local suffix
    suffix=$(printf '%s %s' "$SUBSCRIPTION" "$PREFIX" | sha256 | cut -c 1-8)
    GROUP=$PREFIX
    NAMESPACE=$PREFIX-$suffix
    HUB=coinbase-raw-trades
    REGISTRY=$PREFIX$suffix
    IDENTITY=$PREFIX-pull
    CONTAINER=$PREFIX-producer
    ACCOUNT=$PREFIX$suffix
    FILESYSTEM=lake
    WORKSPACE=$PREFIX
    CONNECTOR=$PREFIX-lake
    GROUP_ID=/subscriptions/$SUBSCRIPTION/resourceGroups/$GROUP
    REGISTRY_ID=$GROUP_ID/providers/Microsoft.ContainerRegistry/registries/$REGISTRY
    IDENTITY_ID=$GROUP_ID/providers/Microsoft.ManagedIdentity/userAssignedIdentities/$IDENTITY
    ACCOUNT_ID=$GROUP_ID/providers/Microsoft.Storage/storageAccounts/$ACCOUNT
    CONNECTOR_ID=$GROUP_ID/providers/Microsoft.Databricks/accessConnectors/$CONNECTOR
    WORKSPACE_ID=$GROUP_ID/providers/Microsoft.Databricks/workspaces/$WORKSPACE
    LAKE_URL=abfss://$FILESYSTEM@$ACCOUNT.dfs.core.windows.net/
    IMAGE=${GIVEN_IMAGE:-$REGISTRY.azurecr.io/$(image_tag)}
}

print_names() {
    cat <<TEXT
resource_group=$GROUP
eventhub_bootstrap=$NAMESPACE.servicebus.windows.net:9093
eventhub_name=$HUB
lake_url=$LAKE_URL
managed_location=${LAKE_URL}catalog
access_connector_id=$CONNECTOR_ID
producer_container=$CONTAINER
image=$IMAGE
TEXT
}

up() {
    register_providers
    ensure_group
    ensure_event_hub
    ensure_registry
    ensure_pull_identity
    ensure_image
    ensure_container
    ensure_lake
    ensure_databricks
    ensure_workspace_contents
    say "Done."
    print_names
    if [ "$MODE" = up ]; then printf 'databricks_host=%s\n' "$DATABRICKS_HOST"; fi
}

down() {
    local owner answer
    owner=$(group_owner)
    [ -n "$owner" ] || { say "There is no resource group $GROUP: nothing to delete." && return; }
    [ "$owner" = "$OWNER" ] || fail "Resource group $GROUP was not made by this script (it lacks the tag managed_by=$OWNER): not deleted."
    if [ "$YES" != yes ]; then
        [ -t 0 ] || fail "This deletes resource group $GROUP with all its data; to do so without being asked, add --yes."
        printf 'This deletes resource group %s with all its data, for good. Type its name to go on: ' "$GROUP"
        read -r answer
        [ "$answer" = "$GROUP" ] || fail "Nothing was deleted."
    fi
    say "Deleting resource group $GROUP; this takes some minutes."
    change group delete --name "$GROUP" --yes
    say "Resource group $GROUP is deleted."
}

main() {
    read_options "$@"
    if [ "$MODE" = cost ]; then
        cat "$HERE/cost.txt"
        return
    fi
    if [ "$MODE" = plan ]; then exec 3>&1; else exec 3>&2; fi
    find_subscription
    name_things
    case $MODE in
    plan | up) up ;;
    down) down ;;
    names) print_names ;;
    esac
}

main "$@"
