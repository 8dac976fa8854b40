#!/bin/busybox sh
# The first process of the bootable disk's initramfs: it finds the root partition and goes there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk crc32c_generic ext4; do
    # kmod's: by its bare name it would be busybox's, which reads other tables.
    /bin/modprobe "$module" || echo "no module $module"
done
for i in $(seq 100); do
    [ -b /dev/vda2 ] && break
    sleep 0.1
done
mount -t ext4 /dev/vda2 /root || { echo "no root file system"; poweroff -f; }
mount --move /dev /root/dev
exec switch_root /root /sbin/init
