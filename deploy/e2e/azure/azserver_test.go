package azure

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/azure/arm"
)

// azServer is testdata/azserver.py. The zero value is no server: rigs run az itself.
type azServer struct {
	process *exec.Cmd
	stdin   io.Closer // of the process, which ends with it
	folder  string    // of the sockets, whose paths must be short
	client  string    // folder of the client, which is named az
	rigs    atomic.Int32
}

// startAzServer starts the server with az's Python, if there is one beside az, and builds
// the client.
func startAzServer(az, folder string) (*azServer, error) {
	python, found := pythonOf(az)
	if !found {
		fmt.Println("azure: slow: beside az there is no Python that can import it")
		return &azServer{client: filepath.Dir(az)}, nil
	}
	s := &azServer{folder: folder, client: filepath.Join(folder, "client")}
	out, err := exec.Command("go", "build", "-o", filepath.Join(s.client, "az"), "./az").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("build the client of azserver.py: %w\n%s", err, out)
	}
	s.process = exec.Command(python, filepath.Join("testdata", "azserver.py"), s.socket("all"))
	s.process.Env = append(os.Environ(), "LANG=C.UTF-8") // as in a rig: Python reads it when it starts
	s.process.Stderr = os.Stderr
	if s.stdin, err = s.process.StdinPipe(); err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	if err := waitForSocket(s.socket("all")); err != nil {
		return nil, err
	}
	return s, nil
}

// pythonOf returns the Python that runs az, and whether it can import az's code.
func pythonOf(az string) (string, bool) {
	az, err := filepath.EvalSymlinks(az)
	if err != nil {
		return "", false
	}
	python := filepath.Join(filepath.Dir(az), "python3")
	return python, exec.Command(python, "-c", "import azure.cli.core").Run() == nil
}

func (s *azServer) socket(name string) string { return filepath.Join(s.folder, name+".sock") }

func (s *azServer) close() error {
	if s.process == nil {
		return nil
	}
	if err := s.stdin.Close(); err != nil {
		return err
	}
	return s.process.Wait()
}

// serve starts the server of one configuration. It returns the settings with which az uses
// it, and a function that ends it.
func (s *azServer) serve(environment []string) ([]string, func() error, error) {
	if s.process == nil {
		return nil, func() error { return nil }, nil
	}
	values := map[string]string{}
	for _, setting := range environment {
		name, value, _ := strings.Cut(setting, "=")
		values[name] = value
	}
	socket := s.socket(fmt.Sprint(s.rigs.Add(1)))
	request, err := json.Marshal(map[string]any{"serve": socket, "env": values})
	if err != nil {
		return nil, nil, err
	}
	connection, err := net.Dial("unix", s.socket("all"))
	if err != nil {
		return nil, nil, err
	}
	if _, err := connection.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
		return nil, nil, err
	}
	return []string{"TANDEM_AZ_SERVER=" + socket}, connection.Close, waitForSocket(socket)
}

// waitForSocket waits until the server listens: it gives the socket its name last.
func waitForSocket(path string) error {
	for range 3000 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("azserver.py does not listen at %s after a minute", path)
}

// shell runs a command in bash, in the environment of the rig.
func (r *rig) shell(command string, settings ...string) result {
	return r.run(exec.Command("bash", "-c", command), settings)
}

// A command that the server runs has the standard streams, the folder, the environment and the exit code that it would have
// without the server.
func TestAzServer_IsAz(t *testing.T) {
	t.Parallel()
	served := newRig(t, arm.Options{})
	plain := newRig(t, arm.Options{})
	plain.withoutServer()
	defer done(t, time.Now(), "a resource group", "output, errors and exit codes of az with and without azserver.py are equal")
	for _, command := range []string{
		"az group create --name x --location eastus2 --output json",
		"az group show --name missing",         // exit code 3
		"az group show --bogus",                // 2
		"az rest --method get --url /nowhere",  // 1
		"az group list --query '[].name' | wc", // stdout is a pipe
		"az group update --name x --set tags.a=b --output none",
		`echo '{"location": "eastus2", "tags": {"from": "stdin"}}' | az rest --method put --body @- --url /subscriptions/` + arm.Subscription + "/resourceGroups/x?api-version=2022-09-01",
		"az group delete --name x <<<n",       // it asks, and stdin is no terminal
		"AZURE_CORE_OUTPUT=tsv az group list", // a setting
		"az version --output yaml",
	} {
		want, got := plain.shell(command), served.shell(command)
		assert.Equal(t, want.stdout, got.stdout, command)
		assert.Equal(t, want.stderr, got.stderr, command)
		assert.Equal(t, fmt.Sprint(want.err), fmt.Sprint(got.err), command)
	}
	assert.Equal(t, "stdin", at(served.Resources()["/subscriptions/"+arm.Subscription+"/resourcegroups/x"], "tags", "from"))
	assert.Equal(t, summary(plain.Changes()), summary(served.Changes()))
	assert.Equal(t, bodies(plain.Changes()), bodies(served.Changes()))
}

// When the client is killed, the command ends, and the server goes on.
func TestAzServer_KilledClientEndsAz(t *testing.T) {
	t.Parallel()
	r := newRig(t, arm.Options{})
	defer done(t, time.Now(), "nothing", "az ends when the client of azserver.py is killed")
	r.Add("/subscriptions/"+arm.Subscription+"/resourceGroups/tandem", map[string]any{"location": "eastus2"})
	output, stdout, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command("bash", "-c", "exec az group wait --name tandem --deleted --interval 1") // for an hour
	cmd.Env, cmd.Stdout = r.environment, stdout
	require.NoError(t, cmd.Start())
	require.NoError(t, stdout.Close())
	require.Eventually(t, func() bool { return len(r.Requests()) > 0 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	// az has the other end of the pipe.
	require.NoError(t, output.SetReadDeadline(time.Now().Add(time.Minute)))
	_, err = io.ReadAll(output)
	assert.NoError(t, err)

	// A client that is killed before it has sent all.
	for _, setting := range r.environment {
		if socket, found := strings.CutPrefix(setting, "TANDEM_AZ_SERVER="); found {
			connection, err := net.Dial("unix", socket)
			require.NoError(t, err)
			require.NoError(t, connection.Close())
		}
	}
	r.shell("az group show --name tandem").require(t)
}
