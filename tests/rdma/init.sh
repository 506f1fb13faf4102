#!/bin/busybox sh
# First process of the guest: a writable view of the host's root, then jobs named by the host.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t devtmpfs dev /dev
for module in /modules/*; do
  $B insmod "$module" || echo "insmod $module failed"
done
$B mkdir -p /ro /rw /root
$B mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /ro
$B mount -t tmpfs rw /rw
$B mkdir /rw/upper /rw/work
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work root /root
for kind in proc sysfs; do
  $B mount -t $kind $kind /root/${kind%fs}
done
$B mount -t devtmpfs dev /root/dev
$B mkdir -p /root/dev/shm /root/dev/pts /root/jobs
for place in dev/shm run; do
  $B mount -t tmpfs tmpfs /root/$place
done
$B mkdir /root/run/tmp
$B mount -t devpts devpts /root/dev/pts
$B mount -t 9p -o trans=virtio,version=9p2000.L,rw,cache=none,msize=512000 jobs /root/jobs
$B ifconfig lo 127.0.0.1 up
$B stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo "ready $($B cut -d' ' -f1 /proc/uptime)" >&3
while read -r job <&3; do
  $B chroot /root /bin/sh "/jobs/$job/run" </dev/null >"/root/jobs/$job/output" 2>&1
  echo "$job $?" >&3
done
