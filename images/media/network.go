package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/diskfs/go-diskfs/backend"
	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"github.com/croft-cloud/croft/provisioning/joinfile"
)

// SetNetwork puts a network file onto the EFI partition of an image, in the place
// of the one that may be there. It takes a moment and writes little: the image
// stays sparse. Nothing may use the image meanwhile; one whose writing was cut
// short is to be made anew.
//
// The folder must be there, as it is in every image of images/build.
func SetNetwork(image string, network *joinfile.Network) error {
	raw, err := network.Format()
	if err != nil {
		return err
	}
	return putOnEFI(image, joinfile.Path, "network file", raw)
}

// SetVoucher puts a box's voucher onto the EFI partition of an image, as SetNetwork
// does with the network file. The image is then one box's alone, and as secret as the
// voucher.
func SetVoucher(image, voucher string) error {
	voucher, err := joinfile.ParseVoucher([]byte(voucher))
	if err != nil {
		return err
	}
	return putOnEFI(image, joinfile.VoucherPath, "voucher", []byte(voucher+"\n"))
}

func putOnEFI(image, path, what string, raw []byte) error {
	about, err := Inspect(image)
	if err != nil {
		return err
	}
	if about.Disk {
		return refuse("%s is a disk, not an image", image)
	}
	disk, err := file.OpenFromPath(image, false)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	part := about.Partitions[0]
	esp, err := fat32.Read(disk, part.Size, part.Start, int64(about.Sector))
	if err == nil {
		err = replaceFile(esp, "/"+path, raw)
	}
	if err == nil {
		err = forgetFree(disk, part.Start)
	}
	if err := errors.Join(err, disk.Close()); err != nil {
		return fmt.Errorf("put the %s onto the EFI partition of %s: %w", what, image, err)
	}
	return nil
}

func replaceFile(esp *fat32.FileSystem, name string, content []byte) error {
	f, err := esp.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Close())
}

// forgetFree says on the FAT32 file system at an offset that nobody has counted
// its free clusters: go-diskfs takes some and leaves the old count.
func forgetFree(disk backend.Storage, at int64) error {
	const sector, infoField, freeField = 512, 48, 488
	w, err := disk.Writable()
	if err != nil {
		return err
	}
	var info [2]byte
	if _, err := disk.ReadAt(info[:], at+infoField); err != nil {
		return err
	}
	_, err = w.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, at+int64(binary.LittleEndian.Uint16(info[:]))*sector+freeField)
	return err
}
