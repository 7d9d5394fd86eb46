#!/bin/sh
# Runs a command as on the machine of a user who has only what the build needs: without the programs that some tests need,
# whatever is installed, and not as CI. Everything else of PATH is there.
set -eu
hidden="go gofmt node npm npx corepack chromium firefox-esr firefox valgrind strace certutil named curl tmux actionlint systemd-analyze"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
old_ifs=$IFS
IFS=:
for place in $PATH; do
    [ -d "$place" ] || continue
    for program in "$place"/*; do
        name=${program##*/}
        case " $hidden " in *" $name "*) continue ;; esac
        [ ! -e "$folder/$name" ] && [ -x "$program" ] || continue
        case $name in
        # An environment that is made here must not lead to this folder, which will be gone.
        python*) printf '#!/bin/sh\nexec "%s" "$@"\n' "$program" >"$folder/$name" && chmod +x "$folder/$name" ;;
        *) ln -s "$program" "$folder/$name" ;;
        esac
    done
done
IFS=$old_ifs
CI="" PATH="$folder" "$@"
