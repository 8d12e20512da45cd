# shellcheck shell=bash
# How the scripts call az: what only looks, what changes something, and what is said about it.
# What is said goes to descriptor 3: standard output for a plan; else standard error, because standard output then is for
# the names that other programs read.

say() { printf '%s\n' "$*" >&3; }

fail() {
    printf 'azure.sh: %s\n' "$*" >&2
    exit 1
}

if command -v sha256sum >/dev/null 2>&1; then SHA256=(sha256sum); else SHA256=(shasum -a 256); fi

sha256() { # of standard input, in hexadecimal digits
    "${SHA256[@]}" | cut -d ' ' -f 1
}

show() { # a command as it could be typed
    { printf '  $' && printf ' %q' "$@" && printf '\n'; } >&3
}

change() { # carries out `az …`, which changes something; a plan only shows it
    set -- az "$@" --subscription "$SUBSCRIPTION" --only-show-errors
    show "$@"
    [ "$MODE" = plan ] || "$@" --output none >&2 || fail "The command above failed; az says why. Run it again: what is done stays done."
}

change_or_explain() { # as change; when it fails, calls the function $1 with what az said first
    local explain=$1 errors=
    shift
    set -- az "$@" --subscription "$SUBSCRIPTION" --only-show-errors
    show "$@"
    if [ "$MODE" = plan ]; then return; fi
    if errors=$("$@" --output none 3>&1 1>&2 2>&3); then return; fi # standard output and error change places
    printf '%s\n' "$errors" >&2
    "$explain" "$errors"
    fail "The command above failed; az says why. Run it again: what is done stays done."
}

look() { # prints what `az …` prints
    az "$@" --subscription "$SUBSCRIPTION" --only-show-errors --output tsv
}

found() { # whether `az … show` finds its object; a plan assumes that nothing is there
    local code=0 errors
    [ "$MODE" != plan ] || return 1
    errors=$(az "$@" --subscription "$SUBSCRIPTION" --only-show-errors --output none 2>&1) || code=$?
    # az ends with 3 when the object is missing; anything else (network, rights) must not be taken for that.
    case $code in
    0) return 0 ;;
    3) return 1 ;;
    *) fail "az $1 $2 failed: $errors" ;;
    esac
}

ensure() { # what, words that end with `show`, --, words that create it; both get the words after the last --
    local what=$1 probe=() create=()
    shift
    while [ "$1" != -- ]; do probe+=("$1") && shift; done
    shift
    while [ "$1" != -- ]; do create+=("$1") && shift; done
    shift
    if found "${probe[@]}" "$@"; then
        say "exists   $what"
    else
        say "creating $what"
        change "${create[@]}" "$@"
    fi
}
