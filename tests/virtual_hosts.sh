# Hosts for tests of runs on several machines: to be sourced. Each is a set of namespaces (network, host name, mounts, processes) with
# an address of its own on a virtual network and an sshd of its own. Files are shared, as on a cluster's file system; /dev/shm, /run
# and the names of hosts are not. Nothing of the machine is changed: no named namespace, no file outside the directory that is given,
# no interface in the machine's own network. When the script that sources this ends, for whatever reason, the kernel ends its hosts.
#
#   virtual_hosts_missing            prints why this machine cannot have such hosts; nothing if it can
#   start_hosts COUNT DIRECTORY      node1 ... nodeCOUNT, 10.77.0.1 ...; exports what mpirun in DIRECTORY needs
#   stop_hosts                       all that runs on them ends
#   on NODE COMMAND...               runs it on node NODE (1, 2, ...)
#   host_processes NODE              process ids, as seen from here, except the host's own init and sshd
#   cut_link NODE, mend_link NODE    unplugs a host from the switch, plugs it in again
#   freeze_host NODE, thaw_host NODE stops every process of a host, as a machine that hangs
#   kill_host NODE                   the host is gone
# shellcheck shell=bash

declare -A host_init=()  # by node: the process that keeps its namespaces, seen from here
switch_init=
hosts_directory=

virtual_hosts_missing() {
  local tool
  for tool in unshare nsenter setpriv ip ssh ssh-keygen mpirun; do
    command -v "$tool" >/dev/null || { echo "$tool is missing (Debian: util-linux iproute2 openssh-client openmpi-bin)"; return; }
  done
  [ -x /usr/sbin/sshd ] || { echo "sshd is missing (Debian: openssh-server)"; return; }
  [ "$(id -u)" -eq 0 ] || { echo "making network namespaces needs root"; return; }
  unshare --net --uts --mount --pid --fork --mount-proc bash -c \
    'hostname probe && mount -t tmpfs tmpfs /run && ip link add name v0 type veth peer name v1 && ip link add name b0 type bridge' \
    >/dev/null 2>&1 || echo "namespaces, veth or bridges are not allowed here (a container without --privileged?)"
}

# Starts a process that holds new namespaces, and waits until they are there: hold_namespaces NAME UNSHARE_OPTION...; sets held_pid.
hold_namespaces() {
  local name=$1
  shift
  rm -f "$hosts_directory/$name.ready"
  # Should this script be killed, the kernel kills unshare, which takes its child along, and with that child go all processes there.
  setpriv --pdeathsig KILL unshare --kill-child "$@" --fork --mount-proc \
    bash -c 'trap : TERM INT; hostname "$1"; ip link set lo up; touch "$2"; while :; do sleep 1000 & wait; done' init \
    "$name" "$hosts_directory/$name.ready" >/dev/null 2>&1 &
  local unshared=$! _
  for _ in $(seq 1200); do
    if [ -e "$hosts_directory/$name.ready" ]; then
      held_pid=$(cat "/proc/$unshared/task/$unshared/children")
      held_pid=${held_pid%% *}
      return 0
    fi
    sleep 0.05
  done
  echo "virtual_hosts: $name did not start" >&2
  return 1
}

start_hosts() {
  local count=$1 node
  hosts_directory=$2
  mkdir -p "$hosts_directory"
  hold_namespaces switch --net --uts --mount --pid
  switch_init=$held_pid
  nsenter --target "$switch_init" --net ip link add name switch type bridge
  nsenter --target "$switch_init" --net ip link set switch up

  ssh-keygen -q -t ed25519 -N '' -C carousel-test -f "$hosts_directory/key"
  ssh-keygen -q -t ed25519 -N '' -C carousel-test -f "$hosts_directory/host_key"
  cp "$hosts_directory/key.pub" "$hosts_directory/authorized_keys"
  echo "127.0.0.1 localhost" >"$hosts_directory/hosts"
  # sshd lets nobody in whose password is locked, and on many machines root's is.
  (umask 077 && echo 'root:*:19000:0:99999:7:::' >"$hosts_directory/shadow")
  for node in $(seq "$count"); do
    echo "10.77.0.$node node$node" >>"$hosts_directory/hosts"
    echo "node$node,10.77.0.$node $(cut -d' ' -f1,2 "$hosts_directory/host_key.pub")" >>"$hosts_directory/known_hosts"
  done
  cat >"$hosts_directory/sshd_config" <<END
HostKey $hosts_directory/host_key
AuthorizedKeysFile $hosts_directory/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
MaxStartups 100
END
  cat >"$hosts_directory/ssh_config" <<END
Host *
  IdentityFile $hosts_directory/key
  IdentitiesOnly yes
  UserKnownHostsFile $hosts_directory/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 8
END
  for node in $(seq "$count"); do start_host "$node"; done
  # What a user of several machines writes into a file or an environment: how to reach the others, and by which network.
  export OMPI_MCA_plm_rsh_agent="ssh -F $hosts_directory/ssh_config"
  export OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0
  export OMPI_MCA_orte_tmpdir_base=$hosts_directory/tmp
  mkdir -p "$hosts_directory/tmp"
}

start_host() { # start_host NODE: also one that was killed
  local node=$1
  hold_namespaces "node$node" --net --uts --mount --pid
  host_init[$node]=$held_pid
  nsenter --target "$switch_init" --net ip link delete "port$node" 2>/dev/null || true
  nsenter --target "$switch_init" --net ip link add name "port$node" type veth peer name eth0 netns "$held_pid"
  nsenter --target "$switch_init" --net ip link set "port$node" master switch up
  nsenter --target "$held_pid" --net ip address add "10.77.0.$node/24" dev eth0
  nsenter --target "$held_pid" --net ip link set eth0 up
  # The trap of real clusters: an interface for containers, with the same address on every host, that leads nowhere.
  nsenter --target "$held_pid" --net ip link add name docker0 type bridge
  nsenter --target "$held_pid" --net ip address add 172.17.0.1/16 dev docker0
  nsenter --target "$held_pid" --net ip link set docker0 up
  on "$node" mount -t tmpfs tmpfs /dev/shm
  on "$node" mount -t tmpfs tmpfs /run
  on "$node" mkdir /run/sshd
  on "$node" mount --bind "$hosts_directory/hosts" /etc/hosts
  on "$node" mount --bind "$hosts_directory/shadow" /etc/shadow
  on "$node" /usr/sbin/sshd -f "$hosts_directory/sshd_config" -E "$hosts_directory/sshd$node.log" -o "ListenAddress=10.77.0.$node"
}

on() {
  local node=$1
  shift
  nsenter --target "${host_init[$node]}" --net --uts --mount --pid -- env --chdir="$PWD" "$@"
}

# Every process of a host's process namespace.
all_host_processes() {
  local space process
  space=$(readlink "/proc/${host_init[$1]}/ns/pid") || return 0
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/ns/pid" 2>/dev/null)" = "$space" ]; then echo "${process#/proc/}"; fi
  done
}
host_processes() {
  local process name
  for process in $(all_host_processes "$1"); do
    name=$(cat "/proc/$process/comm" 2>/dev/null) || continue
    [ "$process" = "${host_init[$1]}" ] || [ "$name" = sshd ] || [ "$name" = sleep ] || echo "$process"
  done
}

cut_link() { nsenter --target "$switch_init" --net ip link set "port$1" down; }
mend_link() { nsenter --target "$switch_init" --net ip link set "port$1" up; }
# Twice: what was being forked meanwhile.
freeze_host() {
  local _ processes
  for _ in 1 2; do
    processes=$(all_host_processes "$1")
    # shellcheck disable=SC2086
    kill -STOP $processes 2>/dev/null || true
  done
}
thaw_host() {
  local processes
  processes=$(all_host_processes "$1")
  # shellcheck disable=SC2086
  kill -CONT $processes 2>/dev/null || true
}
kill_host() {
  kill -KILL "${host_init[$1]}" 2>/dev/null || true
  unset "host_init[$1]"
}
stop_hosts() {
  local node
  for node in "${!host_init[@]}"; do kill_host "$node"; done
  if [ -n "$switch_init" ]; then kill -KILL "$switch_init" 2>/dev/null || true; fi
  switch_init=
  wait 2>/dev/null || true
}
