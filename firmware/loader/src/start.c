// start.efi: the first program the firmware runs (\EFI\BOOT\BOOTX64.EFI).
//
// It starts systemd-boot and, should that ever come back, restarts the machine.
// systemd-boot gives up and returns to the firmware when the kernel image it
// chose cannot be loaded (cut short, unreadable); the firmware would then look
// for something else to boot or stop at a menu that nobody sees. Restarting
// instead lets the boot counter, which systemd-boot has lowered by then, do its
// work: after the last try the other slot boots.
//
// A confirmed image has no counter. When such a one cannot be loaded, the other
// image in \EFI\Linux is asked for at the next start, by systemd-boot's variable
// LoaderEntryOneShot; each start after that costs one vain attempt.

#include <efi.h>

static CHAR16 next[] = L"\\EFI\\systemd\\systemd-bootx64.efi";

static EFI_GUID loader_guid = {0x4a67b082, 0x0a4c, 0x41cf, {0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f}};

static CHAR16 lower(CHAR16 c) { return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c; }

static int same(CHAR16 *a, CHAR16 *b) {
	while (*a && lower(*a) == lower(*b))
		a++, b++;
	return *a == 0 && *b == 0;
}

static int has(CHAR16 *text, CHAR16 wanted) {
	for (; *text; text++)
		if (*text == wanted)
			return 1;
	return 0;
}

// ask_for_other makes systemd-boot take another image than the one it chose, if
// that has no counter and there is another.
static void ask_for_other(EFI_SYSTEM_TABLE *st, EFI_HANDLE device) {
	static CHAR16 selected[256], other[256];
	static UINT64 buffer[256]; // one directory entry, aligned
	EFI_GUID files_guid = SIMPLE_FILE_SYSTEM_PROTOCOL;
	EFI_FILE_IO_INTERFACE *files;
	EFI_FILE_HANDLE root, dir;
	UINTN size = sizeof(selected) - sizeof(CHAR16);

	if (EFI_ERROR(st->RuntimeServices->GetVariable(L"LoaderEntrySelected", &loader_guid, NULL, &size, selected)) ||
	    has(selected, '+') ||
	    EFI_ERROR(st->BootServices->HandleProtocol(device, &files_guid, (void **)&files)) ||
	    EFI_ERROR(files->OpenVolume(files, &root)) ||
	    EFI_ERROR(root->Open(root, &dir, L"\\EFI\\Linux", EFI_FILE_MODE_READ, 0)))
		return;
	for (;;) {
		EFI_FILE_INFO *info = (EFI_FILE_INFO *)buffer;
		UINTN i, n = sizeof(buffer);
		if (EFI_ERROR(dir->Read(dir, &n, buffer)) || n == 0)
			break;
		if ((info->Attribute & EFI_FILE_DIRECTORY) || same(info->FileName, selected))
			continue;
		for (i = 0; info->FileName[i] && i < 255; i++)
			other[i] = lower(info->FileName[i]);
		other[i] = 0;
		if (i < 4 || !same(other + i - 4, L".efi"))
			continue;
		st->RuntimeServices->SetVariable(L"LoaderEntryOneShot", &loader_guid,
			EFI_VARIABLE_NON_VOLATILE | EFI_VARIABLE_BOOTSERVICE_ACCESS | EFI_VARIABLE_RUNTIME_ACCESS,
			(i + 1) * sizeof(CHAR16), other);
		return;
	}
}

static void say(EFI_SYSTEM_TABLE *st, CHAR16 *text) {
	st->ConOut->OutputString(st->ConOut, text);
}

// path_on appends a file path node to the device path of the partition this
// program came from. Returns NULL when memory is short.
static EFI_DEVICE_PATH *path_on(EFI_BOOT_SERVICES *bs, EFI_DEVICE_PATH *device, CHAR16 *file, UINTN file_size) {
	UINTN device_size = 0;
	EFI_DEVICE_PATH *node = device;
	while (node->Type != END_DEVICE_PATH_TYPE) {
		UINTN length = node->Length[0] | node->Length[1] << 8;
		device_size += length;
		node = (EFI_DEVICE_PATH *)((UINT8 *)node + length);
	}
	UINTN node_size = sizeof(EFI_DEVICE_PATH) + file_size;
	UINT8 *path;
	if (EFI_ERROR(bs->AllocatePool(EfiLoaderData, device_size + node_size + sizeof(EFI_DEVICE_PATH), (void **)&path)))
		return NULL;
	bs->CopyMem(path, device, device_size);
	node = (EFI_DEVICE_PATH *)(path + device_size);
	node->Type = MEDIA_DEVICE_PATH;
	node->SubType = MEDIA_FILEPATH_DP;
	node->Length[0] = node_size & 0xff;
	node->Length[1] = node_size >> 8;
	bs->CopyMem(node + 1, file, file_size);
	node = (EFI_DEVICE_PATH *)(path + device_size + node_size);
	node->Type = END_DEVICE_PATH_TYPE;
	node->SubType = END_ENTIRE_DEVICE_PATH_SUBTYPE;
	node->Length[0] = sizeof(EFI_DEVICE_PATH);
	node->Length[1] = 0;
	return (EFI_DEVICE_PATH *)path;
}

EFI_STATUS efi_main(EFI_HANDLE self, EFI_SYSTEM_TABLE *st) {
	EFI_BOOT_SERVICES *bs = st->BootServices;
	EFI_GUID image_guid = LOADED_IMAGE_PROTOCOL, path_guid = DEVICE_PATH_PROTOCOL;
	EFI_LOADED_IMAGE *image;
	EFI_DEVICE_PATH *device, *path;
	EFI_HANDLE loader;

	if (!EFI_ERROR(bs->HandleProtocol(self, &image_guid, (void **)&image)) &&
	    !EFI_ERROR(bs->HandleProtocol(image->DeviceHandle, &path_guid, (void **)&device)) &&
	    (path = path_on(bs, device, next, sizeof(next))) != NULL &&
	    !EFI_ERROR(bs->LoadImage(FALSE, self, path, NULL, 0, &loader))) {
		bs->StartImage(loader, NULL, NULL);
		ask_for_other(st, image->DeviceHandle);
	}

	say(st, L"\r\ncroft: this system could not be started; restarting the box.\r\n");
	bs->Stall(3 * 1000 * 1000);
	st->RuntimeServices->ResetSystem(EfiResetCold, EFI_SUCCESS, 0, NULL);
	return EFI_LOAD_ERROR;
}
