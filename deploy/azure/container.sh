# shellcheck shell=bash
# The producer as a container instance. Its definition holds a secret, so it goes to az through a pipe: a secret in a
# command line could be read by every user of this machine, and one in a file may stay there.

definition() { # the fingerprint: the container group as YAML, with *** in the place of the connection string
    cat <<YAML
apiVersion: '2023-05-01'
name: $CONTAINER
location: $LOCATION
tags: {managed_by: $OWNER, definition: '$1'}
identity:
  type: UserAssigned
  userAssignedIdentities: {'$IDENTITY_ID': {}}
properties:
  osType: Linux
  # Always: a container that ended in order, as at a maintenance of the machine, would stay down with OnFailure.
  restartPolicy: $RESTART
$(registry_credentials)
  containers:
  - name: producer
    properties:
      image: $IMAGE
      environmentVariables:
      - {name: CRYPTOPULSE_FEED__PRODUCTS, value: '$PRODUCTS'}
      - {name: CRYPTOPULSE_LOGGING__FORMAT, value: json}
      - {name: EVENT_HUB_CONNECTION_STRING, secureValue: '***'}
      resources:
        requests: {cpu: 0.5, memoryInGB: 1.0}
      # Only whether the process lives. One that waits for Event Hubs holds messages that a restart would lose.
      livenessProbe:
        exec:
          command: [cryptopulse, status, --process, producer]
        initialDelaySeconds: 60
        periodSeconds: 30
        timeoutSeconds: 15
        failureThreshold: 4
YAML
}

registry_credentials() { # none for an image that anybody may pull from elsewhere
    case $IMAGE in
    "$REGISTRY.azurecr.io/"*) printf "  imageRegistryCredentials:\n  - {server: %s.azurecr.io, identity: '%s'}" "$REGISTRY" "$IDENTITY_ID" ;;
    *) printf '  imageRegistryCredentials: []' ;;
    esac
}

with_secret() { # the connection string: puts it into what is read. Only builtins, so no process gets it as an argument
    local line
    while IFS= read -r line; do
        case $line in
        *"'***'"*) printf '%s\n' "${line%%\*\*\**}$1${line##*\*\*\*}" ;;
        *) printf '%s\n' "$line" ;;
        esac
    done
}

ensure_container() {
    local what="container instance $CONTAINER" fingerprint secret
    fingerprint=$(definition '' | sha256 | cut -c 1-16)
    if ! found container show --resource-group "$GROUP" --name "$CONTAINER"; then
        say "creating $what"
    elif [ "$(look container show --resource-group "$GROUP" --name "$CONTAINER" --query tags.definition)" = "$fingerprint" ]; then
        say "exists   $what"
        return
    else
        say "replacing $what, which has another definition"
    fi
    if [ "$MODE" = plan ]; then
        say "  with this definition, the connection string of rule producer in the place of ***:"
        definition "$fingerprint" | sed 's/^/    /' >&3
        change container create --resource-group "$GROUP" --file /dev/stdin
        return
    fi
    secret=$(connection_string producer)
    definition "$fingerprint" | with_secret "$secret" | change container create --resource-group "$GROUP" --file /dev/stdin
}
