# Run by the guest's first process where the image with the storage tools is attached.
mkdir -p /run/lock /run/udev /run/multipath /var/lib /etc/multipath
ln -s ../run /var/run
ln -s ../run/lock /var/lock
ln -s ../proc/self/mounts /etc/mtab
echo "root:x:0:0:root:/root:/bin/sh" >/etc/passwd
gid=0
for group in root tty dialout kmem input video render sgx audio lp disk cdrom tape kvm; do
    echo "$group:x:$gid:" >>/etc/group
    gid=$((gid + 1))
done
for module in iscsi_tcp sd_mod sg dm-multipath dm-round-robin dm-service-time scsi_dh_alua; do
    modprobe "$module" || echo "no module $module"
done
/usr/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block
udevadm settle
echo "InitiatorName=iqn.2026-11.test.guest:first" >/etc/iscsi/initiatorname.iscsi
# Every test says itself what it wants, and this shell waits for nobody.
iscsid
