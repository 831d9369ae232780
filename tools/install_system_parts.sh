#!/usr/bin/env bash
# Install the system parts that are missing: mosquitto, a C compiler, a Python that makes environments.
#
#   install_system_parts.sh            install what is missing, or say what to install and fail
#   install_system_parts.sh --boards   likewise the compilers and emulators of microboards, which are optional
#   install_system_parts.sh --python   print the Python interpreter to use
#
# Installs with apt-get, as root or by passwordless sudo; elsewhere it only says what is missing.
set -euo pipefail

PATH="$PATH:/usr/sbin:/usr/local/sbin"

# 3.11 first: the pinned versions are tested on it.
find_python() {
    local candidate
    for candidate in python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            > /dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

can_compile() {
    local program='#include <math.h>
int main(void) { return (int)sqrtf(0.0f); }'
    command -v cc > /dev/null && cc -x c -o /dev/null - -lm <<< "$program" 2> /dev/null
}

missing_board_packages() {
    command -v arm-none-eabi-gcc > /dev/null \
        || printf '%s\n' gcc-arm-none-eabi libnewlib-arm-none-eabi
    command -v riscv64-unknown-elf-gcc > /dev/null \
        || printf '%s\n' gcc-riscv64-unknown-elf picolibc-riscv64-unknown-elf
    command -v qemu-system-arm > /dev/null || echo qemu-system-arm
    command -v qemu-system-riscv32 > /dev/null || echo qemu-system-misc
}

missing_packages() {
    if [[ $parts == boards ]]; then
        missing_board_packages
        return
    fi
    command -v mosquitto > /dev/null || echo mosquitto
    can_compile || printf '%s\n' gcc libc6-dev
    find_python > /dev/null || echo python3-venv
}

give_up() {
    {
        echo "Missing on this system: ${missing[*]} (Debian's package names)."
        echo "$1"
        echo "Then run the same make command again."
    } >&2
    exit 1
}

if [[ "${1:-}" == --python ]]; then
    find_python && exit 0
    echo "No Python of version 3.11 or newer with the modules venv and ensurepip was found." >&2
    exit 1
fi

parts=needed
[[ "${1:-}" == --boards ]] && parts=boards
mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -eq 0 ]] && exit 0

versions="mosquitto 2.0.11 or newer, a C compiler, Python 3.11 or newer"
[[ $parts == boards ]] && versions="GCC 12 or newer for arm-none-eabi and riscv64-unknown-elf, QEMU 7.2 or newer"
command -v apt-get > /dev/null \
    || give_up "Install them with this system's package manager: $versions."

as_root=()
if [[ $(id -u) -ne 0 ]]; then
    sudo -n true 2> /dev/null \
        || give_up "Install them: sudo apt-get install --no-install-recommends ${missing[*]}"
    as_root=(sudo -n)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
install_missing() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing[@]}" > "$log" 2>&1 < /dev/null
}

echo "installing ${missing[*]} with apt-get"
if ! install_missing; then
    # Package lists may be absent or stale: fetch them once, then try again.
    "${as_root[@]}" apt-get update -qq > "$log" 2>&1 || { cat "$log" >&2; give_up "apt-get update failed."; }
    install_missing || { cat "$log" >&2; give_up "apt-get install failed."; }
fi

mapfile -t missing < <(missing_packages)
[[ ${#missing[@]} -eq 0 ]] || give_up "apt-get reported success, yet these are still not usable."
