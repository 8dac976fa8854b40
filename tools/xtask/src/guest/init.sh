#!/bin/busybox sh
# The only process of the emulated guest: it readies the machine and then does what the second
# serial line tells it, one line of shell at a time, each answered by its output and `@@ STATUS`.
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/bin LD_LIBRARY_PATH=/usr/lib
# This shell prefers busybox's own programs to files, but functions to both.
for program in /usr/sbin/*; do
    case $program in
    *-*) ;; # no name for a function, and busybox has none like it
    *) eval "${program##*/}() { $program \"\$@\"; }" ;;
    esac
done
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# Nobody may be left to end it from outside.
(sleep 600; echo "the guest ends by itself"; poweroff -f) &
for module in virtio_pci virtio_net crc32c_generic ext4 nbd; do
    modprobe "$module" || echo "no module $module"
done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
# The image with the tools for iSCSI, where the test has attached it.
if grep -qw storage /proc/cmdline; then
    modprobe virtio_blk
    mkdir /opt && mount -t ext4 -o ro /dev/vda /opt && cp -rs /opt/. / && . /etc/storage.sh
fi
exec </dev/ttyS1 >/dev/ttyS1 2>&1
stty raw -echo
echo "ready $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
# Not by `read`: when a child ends meanwhile, it forgets what it has of the line.
while line=$(head -n 1) && [ -n "$line" ]; do
    eval "$line"
    echo "@@ $?"
done
poweroff -f
