# shellcheck shell=bash
# What build, run, shell, test and selftest have in common: where things lie, what is said on the terminal, what they
# start and how it ends, and the machine itself.

vm_directory=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$vm_directory/../.." && pwd)
program=tests/vm/$(basename "$0")

# The exit codes of our own failures are those of timeout(1) and env(1), so that they stay apart from most that a command
# returns.
readonly exit_misused=2 exit_timeout=124 exit_failed=125

say() {
    clear_progress
    printf '%s\n' "vm: $*" >&2
}

give_up() {
    local status=$1 red='' plain=''
    shift
    if [[ -t 2 ]]; then
        red=$'\e[31m' plain=$'\e[0m'
    fi
    say "${red}$*${plain}"
    exit "$status"
}

die() {
    give_up "$exit_failed" "$@"
}

misused() {
    give_up "$exit_misused" "$*; see $program --help"
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

# Whatever ends a script, a signal too, what it started ends before it: the trap turns a signal into an ordinary exit. A
# script calls this before it starts anything, and puts the rest of what is to be done into a clean_up of its own.
clean_up_at_exit() {
    trap finish EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

finish() {
    # A second Ctrl-C must not leave behind what the first was about to end.
    trap '' HUP INT TERM
    clear_progress
    end_child
    end_machine
    clean_up
    [[ -z $work ]] || rm -rf "$work"
}

# Starts the one child that a script has at a time. Job control is switched on only to give it a process group of its own,
# so that everything that it started can be ended with it, and a Ctrl-C reaches nobody but us. The lock of a suite is on
# descriptor 9, and must not outlive us in a child.
child=
child_status=0
patience=0
start_child() {
    set -m
    "$@" 9>&- &
    child=$!
    set +m
}

# Whether the child is over; $child_status is what it returned.
child_ended() {
    ! kill -0 "$child" 2>/dev/null || return 1
    child_status=0
    wait "$child" 2>/dev/null || child_status=$?
    child=
}

# Ends the child, after $patience seconds with force, and whatever is left of its group.
end_child() {
    local group=$child start=$SECONDS
    [[ -n $child ]] || return 0
    kill -TERM "$child" 2>/dev/null || true
    until child_ended || ((SECONDS - start >= patience)); do
        sleep 0.1
    done
    kill -KILL -- "-$group" 2>/dev/null || true
    wait "$group" 2>/dev/null || true
    child=
}

# watched LABEL LIMIT LOG COMMAND…: runs COMMAND with its output in LOG, shows what it does, and gives up after LIMIT
# seconds. A failure shows the log's end and ends the script.
watched() {
    local label=$1 limit=$2 log=$3 start=$SECONDS detail
    shift 3
    patience=0
    start_child "$@" >"$log" 2>&1 </dev/null
    until child_ended; do
        if ((SECONDS - start >= limit)); then
            tail -n 20 "$log" >&2
            give_up "$exit_timeout" "$label: not done after $limit s; all that it said is in $log"
        fi
        detail=$(tail -c 400 "$log" | tr '\r' '\n' | tr -cd '[:print:]\n' | tail -n 1)
        progress "$label" $((SECONDS - start)) "$detail"
        sleep 0.3
    done
    clear_progress
    if ((child_status != 0)); then
        tail -n 20 "$log" >&2
        die "$label: failed with status $child_status; all that it said is in $log"
    fi
}

# call LIMIT SCRIPT ARGUMENT…: runs another of these scripts, for at most LIMIT seconds; $child_status is what it returned.
# It speaks for itself, and is given the time to end what it started; the death signal has it do so where we are killed.
call() {
    local limit=$1 start=$SECONDS
    shift
    patience=60
    start_child setpriv --pdeathsig TERM "$@" </dev/null
    until child_ended; do
        ((SECONDS - start < limit)) || give_up "$exit_timeout" "$(basename "$1"): not done after $limit s"
        sleep 0.2
    done
}

# Builds the machine of the suite, where it isn't there yet, in what is left of $timeout.
call_build() {
    call $((timeout - SECONDS)) "$vm_directory/build" "$suite"
    ((child_status == 0)) || exit "$child_status"
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
    local log=$repository/target/vm/packages.log
    mkdir -p "$(dirname "$log")"
    watched "reading the package lists" 600 "$log" apt-get update
    watched "installing ${missing[*]}" 1200 "$log" \
        env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
}

# The options that run and shell share; what is left over is in $rest.
suite=trixie
legacy=
cpus=2x2x2
accel=tcg,thread=single
share=
timeout=3600
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
                (($# >= 2)) || misused "$1 wants a value"
                declare -g "${1#--}=$2"
                shift 2
                ;;
            --)
                shift
                rest=("$@")
                break
                ;;
            -*) misused "no such option: $1" ;;
            *)
                rest=("$@")
                break
                ;;
        esac
    done
}

check_options() {
    case $suite in
        trixie | bookworm | sid) ;;
        *) misused "no such suite: $suite; there are trixie, bookworm and sid" ;;
    esac
    [[ $cpus =~ ^[1-8]x[1-8]x[12]$ ]] || misused "--cpus $cpus: wants PACKAGESxCORESxTHREADS, as in 2x2x2"
    [[ $timeout =~ ^[1-9][0-9]{0,5}$ ]] || misused "--timeout $timeout: wants seconds"
    if [[ -n $legacy && $suite != bookworm ]]; then
        misused "--legacy: only the kernel and systemd of bookworm still have cgroup v1; use --suite bookworm"
    fi
    suite_directory=$repository/target/vm/$suite
    machine_directory=$suite_directory/machine
    console_log=$suite_directory/console.log
    share=${share:-$suite_directory/share}
}

# One machine of a suite at a time: they share the console log, and two of them would only slow each other down.
lock_suite() {
    local start=$SECONDS
    mkdir -p "$suite_directory"
    exec 9>"$suite_directory/lock"
    until flock --nonblock 9; do
        ((SECONDS < timeout)) || give_up "$exit_timeout" "another $suite machine was still in use after $timeout s"
        progress "waiting for another $suite machine to end" $((SECONDS - start))
        sleep 0.5
    done
    clear_progress
}

# Makes $work, with the directory that only the guest's own scripts see ($control) in it. Leftovers are those of a run
# that was killed: the lock is ours, so nobody uses them, but for the share of a test that waits for its turn, which has
# the number of its process in its name.
work=
make_work() {
    local test_share
    rm -rf "$suite_directory"/run.*
    for test_share in "$suite_directory"/test.*; do
        [[ -d /proc/${test_share##*.} ]] || rm -rf "$test_share"
    done
    work=$(mktemp -d "$suite_directory/run.XXXXXX")
    control=$work/control
    mkdir -p "$control" "$share"
    share=$(cd "$share" && pwd)
    install -t "$control" "$vm_directory/guest/boot-script" "$vm_directory/guest/machine"
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

machine=
end_machine() {
    [[ -n $machine ]] || return 0
    kill -KILL "$machine" 2>/dev/null || true
    wait "$machine" 2>/dev/null || true
    machine=
}

# show_end WHAT FILE
show_end() {
    [[ -s $2 ]] || return 0
    say "the end of $1, $2:"
    tail -n 30 "$2" | tr -cd '[:print:]\n\t' | sed 's/^/    /' >&2
}
