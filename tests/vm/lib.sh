# shellcheck shell=bash
# What build, run and shell have in common: where things lie, what is said on the terminal, and the machine itself.

vm_directory=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$vm_directory/../.." && pwd)
program=tests/vm/$(basename "$0")

# The exit code of our own failures is that of podman and env(1), so that it stays apart from most that a command returns.
readonly exit_failed=125

say() {
    clear_progress
    printf '%s\n' "vm: $*" >&2
}

die() {
    local red='' plain=''
    if [[ -t 2 ]]; then
        red=$'\e[31m' plain=$'\e[0m'
    fi
    say "${red}$*${plain}"
    exit "$exit_failed"
}

progress_shown=
progress_label=

# progress LABEL SECONDS [DETAIL]: on a terminal one line that is rewritten, in a log one line for each LABEL. Whatever is
# done within two seconds stays unmentioned.
progress() {
    local label=$1 seconds=$2 detail=${3:-} line columns
    ((seconds >= 2)) || return 0
    if [[ ! -t 2 ]]; then
        [[ $label == "$progress_label" ]] || say "$label …"
        progress_label=$label
        return 0
    fi
    columns=$(tput cols 2>/dev/null || echo 80)
    line="vm: $label, $seconds s${detail:+ · $detail}"
    [[ $line != "$progress_shown" ]] || return 0
    printf '\r\e[K%s' "${line:0:columns-1}" >&2
    progress_shown=$line
}

clear_progress() {
    [[ -n $progress_shown ]] || return 0
    printf '\r\e[K' >&2
    progress_shown=
}

# Job control is switched on only to give the child a process group of its own, so that everything that it started can
# be ended with it, and a Ctrl-C reaches nobody but us.
child=
start_child() {
    set -m
    "$@" &
    child=$!
    set +m
}

end_child() {
    [[ -n $child ]] || return 0
    kill -KILL -- "-$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
    child=
}

# watched LABEL LIMIT LOG COMMAND…: runs COMMAND with its output in LOG, shows what it does, and gives up after LIMIT
# seconds. A failure shows the log's end and ends the script.
watched() {
    local label=$1 limit=$2 log=$3 start=$SECONDS status=0 detail
    shift 3
    start_child "$@" >"$log" 2>&1 </dev/null
    while kill -0 "$child" 2>/dev/null; do
        if ((SECONDS - start >= limit)); then
            tail -n 20 "$log" >&2
            die "$label: not done after $limit s"
        fi
        detail=$(tail -c 400 "$log" | tr '\r' '\n' | tr -cd '[:print:]\n' | tail -n 1)
        progress "$label" $((SECONDS - start)) "$detail"
        sleep 0.3
    done
    wait "$child" || status=$?
    child=
    clear_progress
    if ((status != 0)); then
        tail -n 20 "$log" >&2
        die "$label: failed with status $status"
    fi
}

# The traps turn a signal into an ordinary exit, so that what a script registers for EXIT is all it needs.
exit_on_signals() {
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# need COMMAND PACKAGE …: installs the packages whose command (or file) is not there yet.
need() {
    local missing=()
    while (($# > 0)); do
        [[ -e $1 ]] || command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    ((${#missing[@]} > 0)) || return 0
    ((EUID == 0)) || die "not installed here: ${missing[*]}; install them: apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || die "not installed here, and there is no apt-get to do it: ${missing[*]}"
    local log
    log=$(mktemp)
    watched "reading the package lists" 600 "$log" apt-get update
    watched "installing ${missing[*]}" 1200 "$log" \
        env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
    rm -f "$log"
}

require_suite() {
    case $1 in
        trixie | bookworm | sid) ;;
        *) die "no such suite: $1; there are trixie, bookworm and sid" ;;
    esac
}

# The options that run and shell share; what is left over is in $rest.
suite=trixie
legacy=
cpus=2x2x2
accel=tcg,thread=single
share=
timeout=1800
rest=()
parse_options() {
    while (($# > 0)); do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --legacy)
                legacy=yes
                shift
                ;;
            --suite | --cpus | --accel | --share | --timeout)
                (($# >= 2)) || die "$1 wants a value; see $program --help"
                declare -g "${1#--}=$2"
                shift 2
                ;;
            --)
                shift
                rest=("$@")
                break
                ;;
            -*) die "no such option: $1; see $program --help" ;;
            *)
                rest=("$@")
                break
                ;;
        esac
    done
}

check_options() {
    require_suite "$suite"
    [[ $cpus =~ ^[1-8]x[1-8]x[12]$ ]] || die "--cpus $cpus: wants PACKAGESxCORESxTHREADS, as in 2x2x2"
    [[ $timeout =~ ^[1-9][0-9]{0,5}$ ]] || die "--timeout $timeout: wants seconds"
    if [[ -n $legacy && $suite != bookworm ]]; then
        die "--legacy: only the kernel and systemd of bookworm still have cgroup v1; use --suite bookworm"
    fi
    suite_directory=$repository/target/vm/$suite
    machine_directory=$suite_directory/machine
    console_log=$suite_directory/console.log
    share=${share:-$suite_directory/share}
}

# One machine of a suite at a time: they share the console log, and two of them would only slow each other down. The lock
# is on descriptor 9, which a machine does not inherit.
lock_suite() {
    local start=$SECONDS
    mkdir -p "$suite_directory"
    exec 9>"$suite_directory/lock"
    until flock --nonblock 9; do
        ((SECONDS - start < timeout)) || die "another $suite machine was still in use after $timeout s"
        progress "waiting for another $suite machine to end" $((SECONDS - start))
        sleep 0.5
    done
    clear_progress
}

# Makes $work, with the directory that only the guest's own scripts see ($control) in it. Leftovers are those of a run
# that was killed: the lock is ours, so nobody uses them.
make_work() {
    rm -rf "$suite_directory"/run.*
    work=$(mktemp -d "$suite_directory/run.XXXXXX")
    control=$work/control
    mkdir -p "$control" "$share"
    share=$(cd "$share" && pwd)
    install -m 755 "$vm_directory/guest/boot-script" "$control/boot-script"
}

# A comma ends a value in qemu's options unless it is doubled.
quoted() {
    printf '%s' "${1//,/,,}"
}

# Fills $qemu with the command line of the machine; MODE is what the guest's boot script is to do.
describe_machine() {
    local mode=$1 packages cores threads node per_package megabytes line
    local model=Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid
    IFS=x read -r packages cores threads <<<"$cpus"
    per_package=$((cores * threads))
    megabytes=$((4096 / packages))
    # Nothing in here needs protection from anything else in here, and without the mitigations emulation is faster. On a
    # busy host the emulated timer can look broken to the kernel, which then panics: it is not to check.
    line="root=/dev/vda rw console=ttyS0 quiet mitigations=off no_timer_check net.ifnames=0 pinfold.vm=$mode"
    # The shell's terminal is ours; systemd would put a login prompt of its own on it.
    line+=" systemd.mask=serial-getty@hvc0.service"
    if [[ -n $legacy ]]; then
        line+=" systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
    fi
    # Emulated, Haswell boots fastest of the models tried: "max" costs a third more, for page tables of five levels and
    # cryptography that the kernel tests at its start. A thread for each CPU would make containers start in half the time,
    # but qemu, up to 10.0 at least, then now and then runs a stale copy of code that the kernel has patched, and the
    # guest panics with "Oops: int3". What is taken from the model, qemu can't emulate and would warn about.
    if [[ $accel == kvm* ]]; then
        model=host
    fi
    # The death signal ends the machine even where this script is killed before it can do so.
    qemu=(setpriv --pdeathsig KILL
        qemu-system-x86_64 -nodefaults -no-user-config -display none -machine pc
        -accel "$accel" -cpu "$model" -m 4G
        -smp "$((packages * per_package)),sockets=$packages,cores=$cores,threads=$threads")
    for ((node = 0; node < packages; node++)); do
        qemu+=(-object "memory-backend-ram,id=memory$node,size=${megabytes}M"
            -numa "node,nodeid=$node,cpus=$((node * per_package))-$(((node + 1) * per_package - 1)),memdev=memory$node")
    done
    qemu+=(-kernel "$machine_directory/kernel" -initrd "$machine_directory/initrd" -append "$line"
        -drive "file=$(quoted "$machine_directory/root.img"),format=raw,if=none,id=root,snapshot=on"
        -device "virtio-blk-pci,drive=root,bus=pci.0"
        -fsdev "local,id=share,path=$(quoted "$share"),security_model=none,multidevs=remap"
        -device "virtio-9p-pci,fsdev=share,mount_tag=share"
        -fsdev "local,id=control,path=$(quoted "$control"),security_model=none,multidevs=remap"
        -device "virtio-9p-pci,fsdev=control,mount_tag=control"
        -chardev "file,id=console,path=$(quoted "$console_log")" -device "isa-serial,chardev=console"
        -device virtio-rng-pci -device virtio-serial-pci)
    if ((packages > 1)); then
        # A host bridge of node 1, with a disk on it: the one device whose node the kernel tells. Devices that name no bus after
        # it would be put on it.
        qemu+=(-device "pxb,id=bridge1,bus=pci.0,bus_nr=64,numa_node=1"
            -blockdev "null-co,node-name=far,size=1048576,read-zeroes=on" -device "virtio-blk-pci,drive=far,bus=bridge1,serial=far")
    fi
}

show_console() {
    [[ -s $console_log ]] || return 0
    say "the end of the console log, $console_log:"
    tail -n 30 "$console_log" | tr -cd '[:print:]\n\t' | sed 's/^/    /' >&2
}
