# Two RDMA ports in one kernel: rxe0 and rxe1, on the ends v0 and v1 of a veth pair.
#   lay                  make them
#   cut | silence        both ports go down | packets vanish and the ports stay up
#   slow DELAY LOSS      such as `slow 20ms 5%`, in each direction
#   mend                 as laid
#   join N               not these, but rxe0 on the card that leads to another guest; it is 10.77.0.N
set -e

# A route, a neighbour and an address of IPv6 are lost with the link.
up() {
  mac0=$(cat /sys/class/net/v0/address) mac1=$(cat /sys/class/net/v1/address)
  ip -batch - <<END
link set v0 up mtu 4200
link set v1 up mtu 4200
neigh replace 10.77.0.2 lladdr $mac1 dev v0 nud permanent
neigh replace 10.77.0.1 lladdr $mac0 dev v1 nud permanent
route replace 10.77.0.2/32 dev v0 table 101 src 10.77.0.1
route replace 10.77.0.1/32 dev v1 table 102 src 10.77.0.2
END
  for v in v0 v1; do
    until grep -q up /sys/class/net/$v/operstate; do sleep 0.01; done
  done
}

netem() {
  for v in v0 v1; do tc qdisc replace dev $v root netem "$@"; done
}

case $1 in
lay)
  ip link add v0 type veth peer name v1
  for i in all default v0 v1; do
    for setting in rp_filter=0 accept_local=1 arp_ignore=1 arp_announce=2; do
      echo ${setting#*=} >/proc/sys/net/ipv4/conf/$i/${setting%=*}
    done
  done
  # By the rules, packets between the two addresses take the wire and not the kernel's short cut.
  ip -batch - <<END
address add 10.77.0.1/24 dev v0
address add 10.77.0.2/24 dev v1
rule add pref 100 lookup local
rule add pref 10 iif lo to 10.77.0.2 lookup 101
rule add pref 11 iif lo to 10.77.0.1 lookup 102
rule del pref 0
END
  up
  rdma link add rxe0 type rxe netdev v0
  rdma link add rxe1 type rxe netdev v1
  ;;
join)
  card=$(ls /sys/class/net | grep -v lo)
  ip address add 10.77.0.$2/24 dev $card
  ip link set $card up mtu 4200
  rdma link add rxe0 type rxe netdev $card
  ;;
cut) ip link set v1 down ;;
silence) netem loss 100% ;;
slow) netem delay $2 loss $3 ;;
mend)
  up
  for v in v0 v1; do tc qdisc delete dev $v root 2>/dev/null || true; done
  ;;
esac
