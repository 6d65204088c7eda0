#!/bin/sh
# Makes sure that this machine has a Vulkan driver. On Debian and Ubuntu it installs Mesa's software driver where there
# is none, and says so first; elsewhere it says what to install. Does nothing on macOS and Windows (Metal, DX12).
#
#   tools/ensure-vulkan.sh            looks for the loader and a driver's description
#   tools/ensure-vulkan.sh PROGRAM    also asks the built program whether it finds an adapter
set -eu

case "$(uname -s)" in
    Linux) ;;
    *) exit 0 ;;
esac

# The loader, libvulkan.so.1, is what wgpu opens at run time.
has_loader() {
    for ldconfig in ldconfig /sbin/ldconfig /usr/sbin/ldconfig; do
        if command -v "$ldconfig" >/dev/null 2>&1; then
            "$ldconfig" -p 2>/dev/null | grep -q 'libvulkan\.so\.1' && return 0
        fi
    done
    for folder in $(echo "${LD_LIBRARY_PATH:-}" | tr ':' ' ') /usr/lib /usr/lib64 /usr/lib/*-linux-* /usr/local/lib; do
        [ -e "$folder/libvulkan.so.1" ] && return 0
    done
    return 1
}

# The loader's documented search: named files alone, else the description folders.
has_driver() {
    named="${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}"
    if [ -n "$named" ]; then
        for file in $(echo "$named" | tr ':' ' '); do
            [ -e "$file" ] && return 0
        done
        echo "VK_DRIVER_FILES or VK_ICD_FILENAMES names no driver that exists: $named" >&2
        echo "Correct it, or unset it to use the drivers that are installed." >&2
        exit 1
    fi
    data="${XDG_DATA_HOME:-${HOME:-}/.local/share}:${XDG_DATA_DIRS:-/usr/local/share:/usr/share}:/usr/share"
    config="${XDG_CONFIG_HOME:-${HOME:-}/.config}:${XDG_CONFIG_DIRS:-/etc/xdg}:/usr/local/etc:/etc"
    for folder in $(echo "$data:$config" | tr ':' ' '); do
        for file in "$folder"/vulkan/icd.d/*.json; do
            [ -e "$file" ] && return 0
        done
    done
    return 1
}

has_adapter() {
    [ -z "${1:-}" ] && return 0
    ! "$1" info 2>&1 | grep -q 'no GPU adapter'
}

ready() {
    has_loader && has_driver && has_adapter "${1:-}"
}

ready "${1:-}" && exit 0

if command -v apt-get >/dev/null 2>&1; then
    install="apt-get install -y --no-install-recommends libvulkan1 mesa-vulkan-drivers"
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif command -v sudo >/dev/null 2>&1; then
        as_root="sudo"
    else
        echo "No Vulkan adapter found. As root, run: apt-get update && $install" >&2
        exit 1
    fi
    echo "No Vulkan adapter found. Installing Mesa's drivers (the software one included):"
    echo "    ${as_root:+$as_root }$install"
    export DEBIAN_FRONTEND=noninteractive
    $as_root apt-get update -q
    $as_root $install
    if ! ready "${1:-}"; then
        echo "There is still no Vulkan adapter. \`vulkaninfo --summary\` (package vulkan-tools) may tell why." >&2
        exit 1
    fi
    exit 0
fi

cat >&2 <<'HINT'
No Vulkan adapter found. Install your GPU's Vulkan driver, or Mesa's software one, and run this again:
    Fedora, RHEL    dnf install vulkan-loader mesa-vulkan-drivers
    Arch            pacman -S vulkan-icd-loader vulkan-swrast
    Alpine          apk add vulkan-loader mesa-vulkan-swrast
    openSUSE        zypper install libvulkan1 libvulkan_lvp
HINT
exit 1
